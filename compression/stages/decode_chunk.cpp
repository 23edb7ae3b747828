#include "comm/clones.h"
#include "comm/crc32c.h"
#include "compression/stages/chunk.h"
#include "compression/stages/fixed_rate.h"
#include "compression/stages/sparse_rows.h"
#include "compression/stages/vector_lz.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace trireme::coding {
namespace {

constexpr std::size_t padded(std::size_t bytes) { return (bytes + 3) / 4 * 4; }

struct Target {
  float* at;
  std::size_t n, dim, stride;
  float* row(std::size_t r) const { return at + r * stride; }
};

template <class Code>
TRIREME_CLONES void dequantize_row(const Code* code, std::size_t n, std::int32_t min, float step, float* to) {
  for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<float>(min + static_cast<std::int32_t>(code[i])) * step;
}

// Codes of the chunk or of its unique rows, of either width.
struct DecodedCodes {
  Bytes narrow;
  std::vector<std::uint16_t> wide;
  void size(bool is_wide, std::size_t count) {
    if (is_wide)
      wide.resize(count);
    else
      narrow.resize(count);
  }
  std::uint8_t* bytes() { return wide.empty() ? narrow.data() : reinterpret_cast<std::uint8_t*>(wide.data()); }
};

void unpack(Reader& in, std::size_t count, bool is_wide, bool to_the_end, DecodedCodes& to) {
  const std::uint32_t bits = in.get<std::uint8_t>();
  if (bits > (is_wide ? 16u : 8u)) bad_stream("packed codes have too many bits");
  const auto packed = in.take(bytes_of_bits(std::uint64_t{bits} * count));
  if (to_the_end && in.left()) bad_stream("a part has bytes left over");
  BitReader codes(packed);
  to.size(is_wide, count);
  for (std::size_t i = 0; i < count; ++i) {
    if (is_wide)
      to.wide[i] = static_cast<std::uint16_t>(codes.read(bits));
    else
      to.narrow[i] = static_cast<std::uint8_t>(codes.read(bits));
  }
}

void write_rows(const ChunkHeader& h, const DecodedCodes& codes, const std::uint32_t* index, const Target& to) {
  const float step = 2 * h.eb;
  for (std::size_t r = 0; r < to.n; ++r) {
    const std::size_t from = (index ? index[r] : r) * to.dim;
    if (h.code_width == 16)
      dequantize_row(codes.wide.data() + from, to.dim, h.code_min, step, to.row(r));
    else
      dequantize_row(codes.narrow.data() + from, to.dim, h.code_min, step, to.row(r));
  }
}

IndexForm form_of(const ChunkHeader& h) {
  return static_cast<IndexForm>((h.flags & index_form_low ? 1 : 0) | (h.flags & index_form_high ? 2 : 0));
}

void decode_dedup(const ChunkHeader& h, Reader& in, const Target& to) {
  const auto encoder = static_cast<Encoder>(h.encoder);
  const std::uint32_t unique = in.number();
  if (unique == 0 || unique > to.n) bad_stream("it has more unique rows than rows, or none");
  const IndexDecoder index(form_of(h), to.n, unique, entropy_of(encoder), in);
  Bytes bits;
  DecodedCodes codes;
  std::span<const std::uint8_t> values;
  const std::size_t count = std::size_t{unique} * to.dim;
  if (encoder == dedup_values) {
    values = in.take(4 * count);
  } else if (encoder == dedup_packed) {
    unpack(in, count, h.code_width == 16, false, codes);
  } else if (encoder == dedup_sparse) {
    if (to.n * to.dim >= most_sparse) bad_stream("it has too many values for sparse rows");
    codes.size(false, count);
    take_sparse(in, unique, to.dim, codes.narrow.data());
  } else {
    const auto stream = in.take(index.bytes_of_bits() ? in.number() : in.left());
    codes.size(false, count);
    if (encoder == dedup_huffman)
      decode_huffman(stream, static_cast<std::uint32_t>(count), most_symbols - 1, codes.narrow.data());
    else
      decode_rans(stream, static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(to.dim), most_symbols - 1,
                  codes.narrow.data(), bits);
  }
  for (std::size_t i = index.bytes_of_bits(); i < bits.size(); ++i)
    if (bits[i]) bad_stream("a part has bytes left over");
  bits.resize(std::min(bits.size(), index.bytes_of_bits()));
  put(bits, in.rest());
  std::vector<std::uint32_t> of_row(to.n);
  index.decode(bits, of_row.data());
  if (encoder != dedup_values) return write_rows(h, codes, of_row.data(), to);
  for (std::size_t r = 0; r < to.n; ++r) std::memcpy(to.row(r), values.data() + of_row[r] * 4 * to.dim, 4 * to.dim);
}

void decode_codes(const ChunkHeader& h, Reader& in, const Target& to) {
  const std::size_t count = to.n * to.dim;
  const bool wide = h.code_width == 16;
  DecodedCodes codes;
  if (h.encoder == packed_codes) {
    unpack(in, count, wide, true, codes);
  } else if (h.encoder == vector_lz) {
    codes.size(wide, count);
    decode_vector_lz(in.rest(), to.n, to.dim * (wide ? 2 : 1), codes.bytes());
  } else if (h.encoder == huffman) {
    codes.size(false, count);
    decode_huffman(in.rest(), static_cast<std::uint32_t>(count), most_symbols - 1, codes.narrow.data());
  } else {
    codes.size(false, count);
    Bytes late;
    decode_rans(in.rest(), static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(to.dim), most_symbols - 1,
                codes.narrow.data(), late);
    for (const std::uint8_t b : late)
      if (b) bad_stream("a part has bytes left over");
  }
  write_rows(h, codes, nullptr, to);
}

void decode_raw(const ChunkHeader& h, Reader& in, const Target& to) {
  if (in.left() != 4 * to.n * to.dim) bad_stream("values have another length");
  for (std::size_t r = 0; r < to.n; ++r) std::memcpy(to.row(r), in.take(4 * to.dim).data(), 4 * to.dim);
}

void apply_outliers(std::span<const std::uint8_t> list, const Target& to) {
  const std::size_t count = list.size() / 8;
  for (std::size_t k = 0; k < count; ++k) {
    std::uint32_t index;
    float value;
    std::memcpy(&index, list.data() + 4 * k, 4);
    std::memcpy(&value, list.data() + 4 * (count + k), 4);
    if (index >= to.n * to.dim) bad_stream("a value kept as it is lies outside the rows");
    to.row(index / to.dim)[index % to.dim] = value;
  }
}

// Does everything that codes can mean stay finite, and is the header one that an encoder writes?
void check_header(const ChunkHeader& h) {
  if (h.version != stream_version) bad_stream("it has stream version " + std::to_string(h.version) + ", not 1");
  if (h.encoder >= encoders || (h.flags & ~all_flags)) bad_stream("its encoder or flags are unknown");
  const auto e = static_cast<Encoder>(h.encoder);
  if (has_codes(e)) {
    if ((h.code_width != 8 && h.code_width != 16) || (h.code_width == 16 && has_bytes(e)))
      bad_stream("its codes have an unknown width");
    if (!(h.eb > 0) || !std::isfinite(2 * h.eb)) bad_stream("its error bound is no bound");
    if (std::abs(std::int64_t{h.code_min}) > largest_code) bad_stream("its codes are too large");
  } else if (h.code_width != 0 || h.eb != 0 || (h.flags & has_outliers)) {
    bad_stream("its header speaks of codes that it has not");
  }
  if ((h.flags & has_nonfinite) && e != raw_values) bad_stream("its header speaks of values that it has not");
  if (!has_index(e) && form_of(h) != plain) bad_stream("its header speaks of an index that it has not");
}

bool finite(const Target& to) {
  for (std::size_t r = 0; r < to.n; ++r)
    for (std::size_t i = 0; i < to.dim; ++i)
      if (!std::isfinite(to.row(r)[i])) return false;
  return true;
}

void check_sum(std::span<const std::uint8_t> code) {
  std::uint32_t crc;
  std::memcpy(&crc, code.data() + header_bytes, sizeof crc);
  const std::size_t covered = header_bytes + checksum_bytes;
  if (crc32c(code.data() + covered, code.size() - covered, crc32c(code.data(), header_bytes)) != crc)
    bad_stream("its checksum is wrong");
}

}  // namespace

std::size_t payload_at(const ChunkHeader& h) { return header_bytes + (h.flags & has_checksum ? checksum_bytes : 0); }

ChunkHeader read_header(std::span<const std::uint8_t> code) {
  if (code.size() < header_bytes) bad_stream("it is shorter than a header");
  ChunkHeader h;
  std::memcpy(&h, code.data(), sizeof h);
  check_header(h);
  if (code.size() != padded(payload_at(h) + std::size_t{h.bytes}))
    bad_stream("it has another length than its header says");
  return h;
}

void decode_chunk(std::span<const std::uint8_t> code, bool checksum, std::size_t n, std::size_t dim, float* rows,
                  std::size_t stride) {
  const ChunkHeader h = read_header(code);
  if (checksum && !(h.flags & has_checksum)) bad_stream("it has no checksum");
  if (h.flags & has_checksum) check_sum(code);
  if (h.rows != n) bad_stream("it has " + std::to_string(h.rows) + " rows, not " + std::to_string(n));
  const Target to{rows, n, dim, stride};
  for (const std::uint8_t b : code.subspan(payload_at(h) + h.bytes))
    if (b) bad_stream("its padding is not zero");
  Reader in(code.subspan(payload_at(h), h.bytes));
  if (n * dim == 0) {
    if (in.left() || h.encoder != raw_values) bad_stream("a part has bytes left over");
    return;
  }
  const auto e = static_cast<Encoder>(h.encoder);
  std::span<const std::uint8_t> outliers;
  if (h.flags & has_outliers) outliers = in.take(std::size_t{8} * in.get<std::uint32_t>());
  if (e == raw_values) {
    decode_raw(h, in, to);
  } else if (e == constant_value) {
    if (in.left()) bad_stream("a part has bytes left over");
    for (std::size_t r = 0; r < n; ++r) std::fill_n(to.row(r), dim, std::bit_cast<float>(h.code_min));
  } else if (is_fixed_rate(e)) {
    const auto bytes = in.rest();
    if (bytes.size() != fixed_rate_bytes(e, n, dim)) bad_stream("values have another length");
    decode_fixed_rate(e, bytes, n, dim, rows, stride);
  } else if (has_index(e)) {
    decode_dedup(h, in, to);
  } else {
    decode_codes(h, in, to);
  }
  apply_outliers(outliers, to);
  const bool any_bits = e == raw_values || e == constant_value || e == dedup_values || !outliers.empty();
  const bool large = !std::isfinite(2 * h.eb * (2.0f * largest_code));
  if ((any_bits || large) && !(h.flags & has_nonfinite) && !finite(to)) bad_stream("a value is not finite");
}

}  // namespace trireme::coding

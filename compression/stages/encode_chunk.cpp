#include "comm/crc32c.h"
#include "compression/stages/chunk.h"
#include "compression/stages/fixed_rate.h"
#include "compression/stages/row_classes.h"
#include "compression/stages/sparse_rows.h"
#include "compression/stages/vector_lz.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace trireme::coding {
namespace {

void put_packed(const EncodeScratch& s, bool wide, std::span<const std::uint32_t> rows, std::size_t dim, Bytes& out) {
  const std::uint32_t bits = bits_for(s.codes.span);
  out.push_back(static_cast<std::uint8_t>(bits));
  BitWriter codes(out);
  const auto put_row = [&](std::size_t r) {
    for (std::size_t i = r * dim; i < (r + 1) * dim; ++i) codes.write(wide ? s.wide[i] : s.narrow[i], bits);
  };
  if (bits == 0) return;
  if (rows.empty())
    for (std::size_t r = 0; r < s.codes.wide.size() / dim; ++r) put_row(r);
  for (const std::uint32_t r : rows) put_row(r);
  codes.finish();
}

// The rows that differ, one after another.
void gather(const std::uint8_t* rows, const Dedup& of, std::size_t stride, std::size_t width, Bytes& to) {
  to.resize(of.unique.size() * width);
  for (std::size_t u = 0; u < of.unique.size(); ++u)
    std::memcpy(to.data() + u * width, rows + of.unique[u] * stride, width);
}

struct Shape {
  std::size_t n, dim;
  bool wide;  // codes of 16 bits
};

void put_symbols(Encoder encoder, const Bytes& codes, std::size_t dim, const Settings& settings, const Codes& of,
                 std::span<const std::uint8_t>& late, Bytes& out) {
  Symbols in{codes.data(), static_cast<std::uint32_t>(codes.size())};
  if (encoder == huffman || encoder == dedup_huffman) return encode_huffman(in, out);
  in.period = static_cast<std::uint32_t>(dim);
  const RowClasses classes = choose_classes(codes.data(), static_cast<std::uint32_t>(codes.size() / dim), in.period,
                                            centre_of(of.min, of.span));
  in.classes = classes.classes;
  in.class_of_row = classes.of_row.data();
  in.counts = classes.counts.data();
  const std::uint32_t lanes = settings.smallest ? few_lanes_log2(in.count) : fast_lanes_log2(in.count);
  late = late.subspan(encode_rans(in, lanes, late, out));
}

IndexForm put_dedup(Encoder encoder, const Shape& shape, const Settings& settings, EncodeScratch& s, Bytes& out) {
  const IndexCode index = encode_index(s.rows, entropy_of(encoder), settings.smallest);
  put_number(out, static_cast<std::uint32_t>(s.rows.unique.size()));
  put(out, index.streams);
  std::span<const std::uint8_t> late(index.bits);
  if (encoder == dedup_packed) {
    put_packed(s, shape.wide, s.rows.unique, shape.dim, out);
  } else if (encoder == dedup_sparse) {
    put_sparse(s.unique.data(), s.rows.unique.size(), shape.dim, centre_of(s.codes.min, s.codes.span), out);
  } else {
    Bytes stream;
    put_symbols(encoder, s.unique, shape.dim, settings, s.codes, late, stream);
    if (!index.bits.empty()) put_number(out, static_cast<std::uint32_t>(stream.size()));  // else it goes to the end
    put(out, stream);
  }
  put(out, late);
  return index.form;
}

std::size_t packed_bytes(const EncodeScratch& s) {
  return 1 + bytes_of_bits(std::uint64_t{bits_for(s.codes.span)} * s.codes.wide.size());
}

Encoder fast_choice(const Shape& shape, const EncodeScratch& s) {
  const bool index = worth_an_index(shape.n, s.rows.unique.size(), shape.dim, s.codes.span);
  return shape.wide ? (index ? dedup_packed : packed_codes) : index ? dedup_rans : rans;
}

// The smallest of the encoders' bodies into s.best.
void encode_codes(const Shape& shape, const Settings& settings, EncodeScratch& s, ChunkHeader& header) {
  const std::size_t width = shape.dim * (shape.wide ? 2 : 1);
  const auto* codes = shape.wide ? reinterpret_cast<const std::uint8_t*>(s.wide.data()) : s.narrow.data();
  std::vector<Encoder> encoders = settings.try_all;
  const bool some_index = encoders.empty() || std::any_of(encoders.begin(), encoders.end(), has_index);
  if (some_index) {
    dedup(codes, shape.n, width, width, s.rows);
    gather(codes, s.rows, width, width, s.unique);
  }
  if (encoders.empty()) encoders = {fast_choice(shape, s)};
  header.encoder = packed_codes;
  std::size_t best = packed_bytes(s);
  for (Encoder e : encoders) {
    if (e == dedup_sparse && shape.n * shape.dim >= most_sparse) e = dedup_packed;
    if (shape.wide && has_bytes(e)) e = has_index(e) ? dedup_packed : packed_codes;
    IndexForm form = plain;
    s.body.clear();
    if (e == packed_codes) continue;
    if (e == vector_lz) {
      if (!encode_vector_lz(codes, shape.n, width, settings.window, best, s.body)) continue;
    } else if (has_index(e)) {
      form = put_dedup(e, shape, settings, s, s.body);
    } else {
      std::span<const std::uint8_t> none;
      put_symbols(e, s.narrow, shape.dim, settings, s.codes, none, s.body);
    }
    if (s.body.size() >= best) continue;
    best = s.body.size();
    header.encoder = e;
    header.flags = static_cast<std::uint8_t>((form & 1 ? index_form_low : 0) | (form & 2 ? index_form_high : 0));
    s.best.swap(s.body);
  }
  if (header.encoder != packed_codes) return;
  s.best.clear();
  put_packed(s, shape.wide, {}, shape.dim, s.best);
}

void put_raw(const Rows& rows, Bytes& out) {
  for (std::size_t r = 0; r < rows.n; ++r)
    put(out, std::span(reinterpret_cast<const std::uint8_t*>(rows.row(r)), 4 * rows.dim));
}

void put_outliers(const std::vector<Outlier>& outliers, Bytes& out) {
  put(out, static_cast<std::uint32_t>(outliers.size()));
  for (const auto& o : outliers) put(out, o.index);
  for (const auto& o : outliers) put(out, o.value);
}

// Rows that differ, bit by bit, and which is where.
void put_values(const Rows& rows, const Settings& settings, EncodeScratch& s, ChunkHeader& header, Bytes& out) {
  header.flags |= without_loss;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(rows.at);
  dedup(bytes, rows.n, 4 * rows.stride, 4 * rows.dim, s.rows);
  const IndexCode index = encode_index(s.rows, Entropy::none, settings.smallest);
  header.encoder = dedup_values;
  header.flags |=
      static_cast<std::uint8_t>((index.form & 1 ? index_form_low : 0) | (index.form & 2 ? index_form_high : 0));
  put_number(out, static_cast<std::uint32_t>(s.rows.unique.size()));
  put(out, index.streams);
  gather(bytes, s.rows, 4 * rows.stride, 4 * rows.dim, s.unique);
  put(out, s.unique);
  put(out, index.bits);
}

// Fits what the plan makes of the values into 8 or 16 bits. False: they travel as they are.
bool make_codes(const Rows& rows, const Bound& bound, const Settings& settings, EncodeScratch& s, Shape& shape) {
  quantize(rows, bound.eb, settings.strict, s.codes);
  const std::uint32_t most = settings.code_width == 8 ? 256 : 65536;
  // Whether they travel as they are depends on them alone, not on the encoder: packed codes are the measure.
  const std::size_t outliers = s.codes.outliers.empty() ? 0 : 4 + 8 * s.codes.outliers.size();
  if (s.codes.span > most || packed_bytes(s) + outliers >= 4 * rows.values()) return false;
  shape.wide = settings.code_width == 16 || s.codes.span > 256;
  if (shape.wide)
    narrow(s.codes, s.wide);
  else
    narrow(s.codes, s.narrow);
  return true;
}

void finish(const ChunkHeader& header, bool checksum, std::size_t begin, Bytes& out) {
  while ((out.size() - begin) % 4) out.push_back(0);
  std::memcpy(out.data() + begin, &header, sizeof header);
  if (!checksum) return;
  const std::size_t covered = header_bytes + checksum_bytes;
  const std::uint32_t crc =
      crc32c(out.data() + begin + covered, out.size() - begin - covered, crc32c(out.data() + begin, header_bytes));
  std::memcpy(out.data() + begin + header_bytes, &crc, sizeof crc);
}

float constant_of(const Rows& rows) { return rows.row(0)[0] == 0 ? 0.0f : rows.row(0)[0]; }

Encoder only_encoder(const Settings& settings) {
  return settings.try_all.size() == 1 ? settings.try_all[0] : dedup_rans;
}
Plan plan_of(const Bound& bound, const Range& range, const Settings& settings) {
  if (range.nonfinite || only_encoder(settings) == raw_values) return Plan::raw;
  if (is_fixed_rate(only_encoder(settings))) return Plan::fixed_rate;
  return bound.plan;
}

}  // namespace

void encode_chunk(const Rows& rows, const Bound& bound, const Range& range, const Settings& settings, EncodeScratch& s,
                  Bytes& out) {
  const std::size_t begin = out.size(), payload = begin + header_bytes + (settings.checksum ? checksum_bytes : 0);
  out.resize(payload);
  ChunkHeader header;
  header.rows = static_cast<std::uint32_t>(rows.n);
  const Plan plan = plan_of(bound, range, settings);
  Shape shape{rows.n, rows.dim, false};
  if (rows.values() == 0) {
  } else if (plan == Plan::fixed_rate) {
    header.encoder = only_encoder(settings);
    out.resize(payload + fixed_rate_bytes(only_encoder(settings), rows.n, rows.dim));
    encode_fixed_rate(only_encoder(settings), rows, out.data() + payload);
  } else if (plan == Plan::constant) {
    header.encoder = constant_value;
    header.code_min = std::bit_cast<std::int32_t>(constant_of(rows));
  } else if (plan == Plan::exact) {
    put_values(rows, settings, s, header, out);
  } else if (plan == Plan::codes && make_codes(rows, bound, settings, s, shape)) {
    encode_codes(shape, settings, s, header);
    header.code_width = shape.wide ? 16 : 8;
    header.eb = bound.eb;
    header.code_min = s.codes.min;
    if (!s.codes.outliers.empty()) {
      header.flags |= has_outliers;
      put_outliers(s.codes.outliers, out);
    }
    put(out, s.best);
  }
  if (rows.values() > 0 && ((header.encoder == raw_values) || out.size() - payload >= 4 * rows.values())) {
    out.resize(payload);
    header = {};
    header.rows = static_cast<std::uint32_t>(rows.n);
    header.flags = static_cast<std::uint8_t>(range.nonfinite             ? has_nonfinite
                                             : bound.plan == Plan::exact ? without_loss
                                                                         : 0);
    put_raw(rows, out);
  }
  if (settings.checksum) header.flags |= has_checksum;
  header.bytes = static_cast<std::uint32_t>(out.size() - payload);
  finish(header, settings.checksum, begin, out);
}

void self_chunk(const Rows& rows, const Bound& bound, const Range& range, const Settings& settings, EncodeScratch& s,
                float* to, std::size_t stride) {
  const Plan plan = plan_of(bound, range, settings);
  Shape shape{rows.n, rows.dim, false};
  if (rows.values() == 0) return;
  if (plan == Plan::fixed_rate) {
    s.body.resize(fixed_rate_bytes(only_encoder(settings), rows.n, rows.dim));
    encode_fixed_rate(only_encoder(settings), rows, s.body.data());
    if (s.body.size() < 4 * rows.values())
      return decode_fixed_rate(only_encoder(settings), s.body, rows.n, rows.dim, to, stride);
  } else if (plan == Plan::constant) {
    const float value = constant_of(rows);
    for (std::size_t r = 0; r < rows.n; ++r) std::fill_n(to + r * stride, rows.dim, value);
    return;
  } else if (plan == Plan::codes && make_codes(rows, bound, settings, s, shape)) {
    return dequantize(s.codes, rows, bound.eb, to, stride);
  }
  for (std::size_t r = 0; r < rows.n; ++r) std::memmove(to + r * stride, rows.row(r), 4 * rows.dim);
}

}  // namespace trireme::coding

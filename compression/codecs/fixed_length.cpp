// Blocks of as few bits as the bound allows, as a Compressor. On a device with the kernels of fixed_length.cu, which
// make the same bytes; its scratch memory there is the codec's own.
#include "compression/codecs/fixed_length.h"

#include "comm/error.h"
#include "compression/chunks.h"
#include "compression/device_room.h"

#include <array>
#include <cstring>

namespace trireme {

namespace {

[[noreturn]] void blocks_on_host(const char* kernel) {
  throw Error(ExitCode::bug, kernel, "is the twin of functions that take host memory");
}

}  // namespace

constinit Kernel<FixedLengthEncode> encode_fixed_length("encode_fixed_length", [](const FixedLengthEncode&) {
  blocks_on_host("encode_fixed_length");
});
constinit Kernel<FixedLengthDecode> decode_fixed_length("decode_fixed_length", [](const FixedLengthDecode&) {
  blocks_on_host("decode_fixed_length");
});

namespace {

using namespace fixed_length;

constexpr std::string_view codec = "fixed_length";
using Codes = std::array<std::uint32_t, block>;

// Codes of up to 32 values; false where one does not fit or would miss the bound.
bool quantize(const float* v, std::uint32_t n, double step, double bound, Codes& codes) {
  const double inverse = 1 / step;
  bool fits = true;
  for (std::size_t i = 0; i < n; ++i) fits = to_code(v[i], step, inverse, bound, codes[i]) && fits;
  for (std::size_t i = n; i < block; ++i) codes[i] = 0;
  return fits;
}

// Bit plane b of the 32 codes is one word: packing needs no shifts across words.
void pack(const Codes& codes, unsigned bits, std::uint8_t* to) {
  for (unsigned b = 0; b < bits; ++b) {
    std::uint32_t plane = 0;
    for (std::size_t i = 0; i < block; ++i) plane |= ((codes[i] >> b) & 1u) << i;
    std::memcpy(to + 4 * b, &plane, 4);
  }
}

void unpack(const std::uint8_t* from, unsigned bits, Codes& codes) {
  codes.fill(0);
  for (unsigned b = 0; b < bits; ++b) {
    std::uint32_t plane;
    std::memcpy(&plane, from + 4 * b, 4);
    for (std::size_t i = 0; i < block; ++i) codes[i] |= ((plane >> i) & 1u) << b;
  }
}

unsigned bits_of(const Codes& codes) {
  std::uint32_t all = 0;
  for (const std::uint32_t c : codes) all |= c;
  return all ? 32 - static_cast<unsigned>(__builtin_clz(all)) : 0;
}

std::size_t encode_one(const float* in, std::size_t count, double bound, std::uint8_t* to) {
  if (count == 0) return 0;
  const double step = step_of(bound);
  std::memset(to, 0, header_bytes(count));
  std::memcpy(to, &step, sizeof step);
  std::uint8_t *width = to + sizeof step, *at = to + header_bytes(count);
  Codes codes;
  for (std::size_t b = 0; b < blocks_of(count); ++b, ++width) {
    const float* v = in + b * block;
    const std::uint32_t n = values_of(count, b);
    const unsigned bits = quantize(v, n, step, bound, codes) ? bits_of(codes) : raw;
    *width = static_cast<std::uint8_t>(bits < n ? bits : raw);  // the values themselves are no longer
    if (*width == raw)
      std::memcpy(at, v, sizeof(float) * n);
    else
      pack(codes, bits, at);
    at += 4 * words_of(*width, n);
  }
  return static_cast<std::size_t>(at - to);
}

void decode_one(const std::uint8_t* from, std::size_t bytes, float* values, std::size_t count) {
  if (count == 0) return;
  double step;
  if (bytes < header_bytes(count)) bad_code(codec, "a part ends too early");
  std::memcpy(&step, from, sizeof step);
  if (!(step >= 0) || !std::isfinite(step)) bad_code(codec, "its error bound is not a number");
  std::size_t at = header_bytes(count);
  Codes codes;
  for (std::size_t b = 0; b < blocks_of(count); ++b) {
    const std::uint8_t width = from[sizeof step + b];
    const std::uint32_t n = values_of(count, b);
    const std::size_t size = 4 * std::size_t{words_of(width, n)};
    if (!is_width(width)) bad_code(codec, "a block cannot have " + std::to_string(width) + " bits a value");
    if (size > bytes - at) bad_code(codec, "a part ends too early");
    float* v = values + b * block;
    if (width == raw) {
      std::memcpy(v, from + at, size);
    } else {
      unpack(from + at, width, codes);
      for (std::size_t i = 0; i < n; ++i) v[i] = value_of(codes[i], step);
    }
    at += size;
  }
  for (std::size_t b = blocks_of(count); b < width_bytes(count); ++b)
    if (from[sizeof step + b]) bad_code(codec, "a width belongs to no block");
  if (at != bytes) bad_code(codec, "a part has bytes left over");
}

// Of a chunk on a device; `first`, of its blocks, goes on behind it.
template <class Job>
void place_blocks(Job& chunk, std::size_t count, std::size_t& first) {
  chunk.count = static_cast<std::uint32_t>(count), chunk.first_block = static_cast<std::uint32_t>(first);
  first += width_bytes(count);
  if (count >> 31 || first >> 32) throw Error(ExitCode::bug, codec, "a device takes less than 2^31 values at once");
}

class FixedLength final : public Compressor {
 public:
  bool bounded() const override { return true; }
  bool on_device() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override {
    return count == 0 ? 0 : header_bytes(count) + sizeof(float) * count;
  }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    if (out.place.host()) return encode_each(*this, chunks, out, sizes, encode_one);
    check_encode(*this, chunks, out, sizes);
    FixedLengthEncode job;
    std::vector<FixedLengthEncode::Chunk> described;
    for (const Chunk& c : chunks) {
      auto& d = described.emplace_back();
      d.in = static_cast<const float*>(c.in.data);
      d.before = before(c), d.error = c.error;
      d.step = step_of(c.bound), d.bound = c.bound;
      place_blocks(d, c.in.count, job.blocks);
    }
    job.chunks = described.data(), job.count = described.size();
    job.out = static_cast<std::uint8_t*>(out.data), job.sizes = static_cast<std::uint64_t*>(sizes.data);
    job.scratch = scratch(FixedLengthEncode::scratch_bytes(job.blocks), out.place);
    encode_fixed_length(job, out.place);
  }

  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    if (in.place.host()) return decode_each(*this, codec, in, sizes, out, decode_one);
    decode_there(in, sizes, out, false);
  }

  void decode_sum(std::span<const ConstBuffer> codes, Buffer out) const override {
    if (out.place.host()) return Compressor::decode_sum(codes, out);
    for (std::size_t k = 0; k < codes.size(); ++k) {
      const std::uint64_t size = codes[k].count;
      decode_there(codes[k], {&size, 1}, {&out, 1}, k > 0);
    }
  }

 private:
  void decode_there(const ConstBuffer& in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out,
                    bool add) const {
    check_decode(*this, codec, in, sizes, out);
    FixedLengthDecode job;
    std::vector<FixedLengthDecode::Chunk> described;
    const auto* from = static_cast<const std::uint8_t*>(in.data);
    for (std::size_t k = 0; k < out.size(); from += sizes[k++]) {
      auto& d = described.emplace_back();
      d.code = from, d.out = static_cast<float*>(out[k].data), d.add = add;
      // Bytes of another rank's telling may end anywhere, and what lies behind them begins there.
      d.bytes = reinterpret_cast<std::uintptr_t>(from) % 4 == 0 ? sizes[k] : 0;
      place_blocks(d, out[k].count, job.blocks);
    }
    job.chunks = described.data(), job.count = described.size();
    job.scratch = scratch(FixedLengthDecode::scratch_bytes(job.blocks, job.count), in.place);
    decode_fixed_length(job, in.place);
  }

  std::uint8_t* scratch(std::size_t bytes, Place place) const {
    return static_cast<std::uint8_t*>(scratch_.take(bytes, place).data);
  }

  mutable DeviceRoom scratch_;
};

const Compressors::Entry registered("fixed_length", [] { return std::make_unique<FixedLength>(); });

}  // namespace
}  // namespace trireme

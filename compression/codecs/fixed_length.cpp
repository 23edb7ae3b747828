// Error-bounded: values are rounded to multiples of 2*bound, and each block of 32 stores its codes with as many bits
// as its largest needs (block-wise fixed-length encoding, as in cuSZp, SC'23, without its prediction: gradients and
// embeddings have no neighbours worth predicting). A block whose values a code cannot hold within the bound, or that
// holds a non-finite one, is stored as it is. bound 0 stores everything as it is.
// Layout of a chunk: f64 step, then per block one byte (bits a code, or `raw`) and 4*bits bytes, or the f32 values.
#include "compression/chunks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace trireme {
namespace {

constexpr std::size_t block = 32;
constexpr std::uint8_t raw = 0xff;
constexpr unsigned most_bits = 30;
constexpr std::string_view codec = "fixed_length";

std::size_t blocks_of(std::size_t count) { return (count + block - 1) / block; }

std::uint32_t zigzag(std::int32_t q) {
  return (static_cast<std::uint32_t>(q) << 1) ^ static_cast<std::uint32_t>(q >> 31);
}
std::int32_t unzigzag(std::uint32_t z) { return static_cast<std::int32_t>(z >> 1) ^ -static_cast<std::int32_t>(z & 1); }

float value_of(std::int32_t q, double step) { return static_cast<float>(q * step); }

// Codes of up to 32 values; false where one does not fit or would miss the bound.
bool quantize(const float* v, std::size_t n, double step, double bound, std::array<std::uint32_t, block>& codes) {
  if (!(step > 0)) return false;
  const double inverse = 1 / step;
  constexpr double largest = 1 << (most_bits - 2);
  bool fits = true;
  for (std::size_t i = 0; i < n; ++i) {
    const double x = v[i] * inverse;
    const bool inside = std::abs(x) < largest;  // false for NaN
    const auto q = static_cast<std::int32_t>(std::nearbyint(inside ? x : 0));
    fits = fits && inside && std::abs(static_cast<double>(value_of(q, step)) - v[i]) <= bound;
    codes[i] = zigzag(q);
  }
  for (std::size_t i = n; i < block; ++i) codes[i] = 0;
  return fits;
}

// Bit plane b of the 32 codes is one word: packing needs no shifts across words.
void pack(const std::array<std::uint32_t, block>& codes, unsigned bits, std::uint8_t* to) {
  for (unsigned b = 0; b < bits; ++b) {
    std::uint32_t plane = 0;
    for (std::size_t i = 0; i < block; ++i) plane |= ((codes[i] >> b) & 1u) << i;
    std::memcpy(to + 4 * b, &plane, 4);
  }
}

void unpack(const std::uint8_t* from, unsigned bits, std::array<std::uint32_t, block>& codes) {
  codes.fill(0);
  for (unsigned b = 0; b < bits; ++b) {
    std::uint32_t plane;
    std::memcpy(&plane, from + 4 * b, 4);
    for (std::size_t i = 0; i < block; ++i) codes[i] |= ((plane >> i) & 1u) << b;
  }
}

unsigned bits_of(const std::array<std::uint32_t, block>& codes) {
  std::uint32_t all = 0;
  for (const std::uint32_t c : codes) all |= c;
  return all ? 32 - static_cast<unsigned>(__builtin_clz(all)) : 0;
}

class FixedLength final : public Compressor {
 public:
  bool bounded() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override {
    return count == 0 ? 0 : sizeof(double) + blocks_of(count) + sizeof(float) * count;
  }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    encode_each(*this, chunks, out, sizes, encode_one);
  }
  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, codec, in, sizes, out, decode_one);
  }

 private:
  static std::size_t encode_one(const float* in, std::size_t count, double bound, std::uint8_t* to) {
    if (count == 0) return 0;
    const double step = 2 * bound;
    std::memcpy(to, &step, sizeof step);
    std::uint8_t* at = to + sizeof step;
    std::array<std::uint32_t, block> codes;
    for (std::size_t b = 0; b < blocks_of(count); ++b) {
      const float* v = in + b * block;
      const std::size_t n = std::min(block, count - b * block);
      const bool fits = quantize(v, n, step, bound, codes);
      const unsigned bits = fits ? bits_of(codes) : 0;
      if (!fits || 4 * bits >= sizeof(float) * n) {  // the values themselves are no longer
        *at++ = raw;
        std::memcpy(at, v, sizeof(float) * n);
        at += sizeof(float) * n;
      } else {
        *at++ = static_cast<std::uint8_t>(bits);
        pack(codes, bits, at);
        at += 4 * bits;
      }
    }
    return static_cast<std::size_t>(at - to);
  }

  static void decode_one(const std::uint8_t* from, std::size_t bytes, float* values, std::size_t count) {
    if (count == 0) return;
    double step;
    if (bytes < sizeof step) bad_code(codec, "a part ends too early");
    std::memcpy(&step, from, sizeof step);
    if (!(step >= 0) || !std::isfinite(step)) bad_code(codec, "its error bound is not a number");
    std::size_t at = sizeof step;
    const auto take = [&](std::size_t n) {
      if (n > bytes - at) bad_code(codec, "a part ends too early");
      const std::uint8_t* p = from + at;
      at += n;
      return p;
    };
    std::array<std::uint32_t, block> codes;
    for (std::size_t b = 0; b < blocks_of(count); ++b) {
      const std::size_t n = std::min(block, count - b * block);
      const std::uint8_t bits = *take(1);
      float* v = values + b * block;
      if (bits == raw) {
        std::memcpy(v, take(sizeof(float) * n), sizeof(float) * n);
        continue;
      }
      if (bits > most_bits) bad_code(codec, "a block cannot have " + std::to_string(bits) + " bits a value");
      unpack(take(4 * std::size_t{bits}), bits, codes);
      for (std::size_t i = 0; i < n; ++i) v[i] = value_of(unzigzag(codes[i]), step);
    }
    if (at != bytes) bad_code(codec, "a part has bytes left over");
  }
};

const Compressors::Entry registered("fixed_length", [] { return std::make_unique<FixedLength>(); });

}  // namespace
}  // namespace trireme

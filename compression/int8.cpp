// Linear quantization to 8 bits with one scale for each block of 256 values (block absmax / 127): 260 bytes a block,
// error at most half a step, absmax / 254. Meant to be used with error feedback.
// Layout of a chunk: all scales (f32), then all codes (i8).
#include "compression/chunks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace trireme {
namespace {

constexpr std::size_t block = 256;
constexpr float levels = 127;

std::size_t blocks_of(std::size_t count) { return (count + block - 1) / block; }

// The absolute maximum, or NaN if any value is not finite.
float magnitude(const float* v, std::size_t n) {
  float largest = 0, poison = 0;  // 0 * inf and 0 * NaN are NaN: one pass without branches
  for (std::size_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(v[i]));
    poison += v[i] * 0.0f;
  }
  return poison == 0 ? largest : std::numeric_limits<float>::quiet_NaN();
}

class Int8 final : public Compressor {
 public:
  bool fixed_size() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return count + sizeof(float) * blocks_of(count); }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    encode_each(*this, chunks, out, sizes, [this](const float* in, std::size_t count, double, std::uint8_t* to) {
      auto* codes = reinterpret_cast<std::int8_t*>(to + sizeof(float) * blocks_of(count));
      for (std::size_t b = 0; b < blocks_of(count); ++b) {
        const float* v = in + b * block;
        const std::size_t n = std::min(block, count - b * block);
        const float scale = magnitude(v, n) / levels;
        std::memcpy(to + sizeof(float) * b, &scale, sizeof scale);
        quantize(v, n, scale, codes + b * block);
      }
      return max_bytes(count);
    });
  }

  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, "int8", in, sizes, out,
                [](const std::uint8_t* from, std::size_t, float* values, std::size_t count) {
                  const auto* codes = reinterpret_cast<const std::int8_t*>(from + sizeof(float) * blocks_of(count));
                  for (std::size_t b = 0; b < blocks_of(count); ++b) {
                    float scale;
                    std::memcpy(&scale, from + sizeof(float) * b, sizeof scale);
                    const std::size_t n = std::min(block, count - b * block);
                    for (std::size_t i = 0; i < n; ++i)
                      values[b * block + i] = scale * static_cast<float>(codes[b * block + i]);
                  }
                });
  }

 private:
  static void quantize(const float* v, std::size_t n, float scale, std::int8_t* codes) {
    // A denormal scale has no finite inverse; a NaN one must not reach the conversion: codes are then all zero.
    const float inverse = scale >= std::numeric_limits<float>::min() ? 1 / scale : 0;
    for (std::size_t i = 0; i < n; ++i)
      codes[i] =
          static_cast<std::int8_t>(static_cast<std::int32_t>(inverse == 0 ? 0.0f : std::nearbyint(v[i] * inverse)));
  }
};

const RegisterCompressor registered("int8", [] { return std::make_unique<Int8>(); });

}  // namespace
}  // namespace trireme

// Linear quantization to 8 bits with one scale for each block of 256 values (block absmax / 127): 260 bytes a block,
// error at most half a step, absmax / 254. Meant to be used with error feedback.
// Layout of a chunk: all scales (f32), then all codes (i8).
#include "comm/clones.h"
#include "compression/chunks.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace trireme {
namespace {

constexpr std::size_t block = 256;
constexpr float levels = 127;

std::size_t blocks_of(std::size_t count) { return (count + block - 1) / block; }
std::size_t bytes_of(std::size_t count) { return count + sizeof(float) * blocks_of(count); }

// 1.5 * 2^23 + x has the integer nearest to x (ties to even) in its low bits.
constexpr float rounder = 12582912.0f;

// One pass over memory: with `error`, in + before is encoded and what the code loses is left in `error` (which may be
// `before`).
TRIREME_CLONES void encode_blocks(const float* in, const float* before, float* error, std::size_t count,
                                  std::uint8_t* to) {
  auto* codes = reinterpret_cast<std::int8_t*>(to + sizeof(float) * blocks_of(count));
  float sum[block];
  for (std::size_t first = 0; first < count; first += block, to += sizeof(float)) {
    const std::size_t n = std::min(block, count - first);
    const float* v = in + first;
    if (error) {
      for (std::size_t i = 0; i < n; ++i) sum[i] = v[i] + before[first + i];
      v = sum;
    }
    // The bits of magnitudes are in the order of the magnitudes, infinity and NaN above all numbers.
    std::int32_t largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<std::int32_t>(v[i]) & 0x7fffffff);
    const bool finite = largest < 0x7f800000;
    const float scale = finite ? std::bit_cast<float>(largest) / levels : std::numeric_limits<float>::quiet_NaN();
    std::memcpy(to, &scale, sizeof scale);
    std::int8_t* code = codes + first;
    // A denormal scale has no finite inverse: all codes are zero, as they are where the scale says NaN.
    if (!(scale >= std::numeric_limits<float>::min())) {
      std::memset(code, 0, n);
      if (error)
        for (std::size_t i = 0; i < n; ++i) error[first + i] = finite ? v[i] : 0;
      continue;
    }
    const float inverse = 1 / scale;
    for (std::size_t i = 0; i < n; ++i)
      code[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(v[i] * inverse + rounder) -
                                         std::bit_cast<std::int32_t>(rounder));
    if (error)
      for (std::size_t i = 0; i < n; ++i) error[first + i] = v[i] - scale * static_cast<float>(code[i]);
  }
}

// The sum of several codes, block by block.
TRIREME_CLONES void decode_blocks(const std::uint8_t* const* codes, std::size_t n_codes, float* out,
                                  std::size_t count) {
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t n = std::min(block, count - first);
    for (std::size_t k = 0; k < n_codes; ++k) {
      float scale;
      std::memcpy(&scale, codes[k] + first / block * sizeof scale, sizeof scale);
      const auto* code = reinterpret_cast<const std::int8_t*>(codes[k] + sizeof scale * blocks_of(count)) + first;
      if (k == 0) {
        for (std::size_t i = 0; i < n; ++i) out[first + i] = scale * static_cast<float>(code[i]);
      } else {
        for (std::size_t i = 0; i < n; ++i) out[first + i] += scale * static_cast<float>(code[i]);
      }
    }
  }
}

class Int8 final : public Compressor {
 public:
  bool fixed_size() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return bytes_of(count); }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    check_encode(*this, chunks, out, sizes);
    auto* to = static_cast<std::uint8_t*>(out.data);
    auto* size = static_cast<std::uint64_t*>(sizes.data);
    for (const Chunk& c : chunks) {
      encode_blocks(static_cast<const float*>(c.in.data), before(c), c.error, c.in.count, to);
      *size = bytes_of(c.in.count);
      to += *size++;
    }
  }
  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, "int8", in, sizes, out,
                [](const std::uint8_t* from, std::size_t, float* values, std::size_t count) {
                  decode_blocks(&from, 1, values, count);
                });
  }
  void decode_sum(std::span<const ConstBuffer> codes, Buffer out) const override {
    std::vector<const std::uint8_t*> from;
    for (const auto& c : codes) {
      const std::uint64_t size = c.count;
      check_decode(*this, "int8", c, {&size, 1}, {&out, 1});
      from.push_back(static_cast<const std::uint8_t*>(c.data));
    }
    decode_blocks(from.data(), from.size(), static_cast<float*>(out.data), out.count);
  }
};

const Compressors::Entry registered("int8", [] { return std::make_unique<Int8>(); });

}  // namespace
}  // namespace trireme

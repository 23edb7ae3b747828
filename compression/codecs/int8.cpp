// Linear quantization to 8 bits with one scale for each block of 256 values (block absmax / 127): 260 bytes a block,
// error at most half a step, absmax / 254. Meant to be used with error feedback.
// Layout of a chunk: all scales (f32), then all codes (i8).
#include "comm/clones.h"
#include "compression/codecs/kernels.h"
#include "compression/fixed_size_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace trireme {
namespace {

constexpr std::size_t block = int8_block;
constexpr float levels = int8_levels, rounder = int8_rounder;

std::size_t bytes_of(std::size_t count) { return count + sizeof(float) * int8_blocks(count); }

// One pass over memory.
TRIREME_CLONES void encode_blocks(const EncodeJob& job) {
  const auto [in, before, error, count, first_code] = job;
  std::uint8_t* to = first_code;
  auto* codes = reinterpret_cast<std::int8_t*>(to + sizeof(float) * int8_blocks(count));
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
TRIREME_CLONES void decode_blocks(const DecodeJob& job) {
  const auto [codes, n_codes, add, out, count] = job;
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t n = std::min(block, count - first);
    for (std::size_t k = 0; k < n_codes; ++k) {
      float scale;
      std::memcpy(&scale, codes[k] + first / block * sizeof scale, sizeof scale);
      const auto* code = reinterpret_cast<const std::int8_t*>(codes[k] + sizeof scale * int8_blocks(count)) + first;
      if (k == 0 && !add) {
        for (std::size_t i = 0; i < n; ++i) out[first + i] = scale * static_cast<float>(code[i]);
      } else {
        for (std::size_t i = 0; i < n; ++i) out[first + i] += scale * static_cast<float>(code[i]);
      }
    }
  }
}

const Compressors::Entry registered("int8", [] {
  return make_compressor({"int8", bytes_of, {}, encode_int8, decode_int8});
});

}  // namespace

constinit Kernel<EncodeJob> encode_int8("encode_int8", encode_blocks);
constinit Kernel<DecodeJob> decode_int8("decode_int8", decode_blocks);

}  // namespace trireme

// fp8 and int4 of flat values: a scale for each block of 128, its largest magnitude the largest code. Shared by the
// host functions and the CUDA twins. (C++17: nvcc sees it.)
#pragma once
#include "compression/codecs/kernels.h"
#include "compression/stages/rate_values.h"

namespace trireme {

// Layout of a code: all scales (f32), then all codes; int4 two a byte, the even one in the low bits, value + 8.
constexpr std::size_t scaled_block = 128;
TRIREME_SHARED std::size_t scaled_blocks(std::size_t count) { return (count + scaled_block - 1) / scaled_block; }

// e4m3: 448 is the largest. 132 bytes a block.
struct Fp8Block {
  static constexpr float levels = coding::largest_fp8;
  TRIREME_SHARED static std::size_t bytes(std::size_t values) { return values; }
  TRIREME_SHARED static std::uint32_t code(float x) { return coding::to_fp8(x); }
  TRIREME_SHARED static float value(std::uint32_t code) { return coding::from_fp8(static_cast<std::uint8_t>(code)); }
};

// -7 to 7. 68 bytes a block.
struct Int4Block {
  static constexpr float levels = coding::largest_int4;
  TRIREME_SHARED static std::size_t bytes(std::size_t values) { return (values + 1) / 2; }
  TRIREME_SHARED static std::uint32_t code(float x) {
    return (coding::float_bits(x + int8_rounder) - coding::float_bits(int8_rounder) + 8) & 15;
  }
  TRIREME_SHARED static float value(std::uint32_t code) { return static_cast<float>(static_cast<int>(code) - 8); }
};

// What a code decodes to. NaN of the scale stays; a finite value never becomes infinite.
template <class Format>
TRIREME_SHARED float scaled_value(std::uint32_t code, float scale) {
  return coding::clamped(scale * Format::value(code));
}

// The scale of a block by the bits of its largest magnitude, which are in the order of the magnitudes, infinity and NaN
// above all numbers. NaN: a value is not finite; 0: too small to be divided by, all codes are those of zero.
template <class Format>
TRIREME_SHARED float scaled_scale(std::uint32_t largest) {
  if (largest >= 0x7f800000u) return coding::bits_float(0x7fc00000u);
  return coding::scale_for(coding::bits_float(largest), Format::levels);
}

}  // namespace trireme

// The numbers of fixed_rate.h, shared with its kernels. (C++17: nvcc sees it.)
#pragma once
#include "compression/stages/format.h"

#include <cmath>
#include <cstddef>
#include <cstring>

namespace trireme::coding {

constexpr std::size_t rate_block = 32;  // of int8_row32
constexpr float largest_fp8 = 448, largest_int4 = 7, largest_f32 = 3.40282347e38f;

TRIREME_SHARED std::size_t scale_bytes(Encoder encoder, std::size_t dim) {  // of a row
  return encoder == fp8 || encoder == int4 ? 4 : encoder == int8_row32 ? 8 * ((dim + rate_block - 1) / rate_block) : 0;
}
TRIREME_SHARED std::size_t code_bytes(Encoder encoder, std::size_t dim) {  // of a row
  return encoder == int4 ? (dim + 1) / 2 : encoder == fp16 || encoder == bf16 ? 2 * dim : dim;
}
TRIREME_SHARED std::size_t fixed_rate_bytes(Encoder encoder, std::size_t n, std::size_t dim) {
  return n * (scale_bytes(encoder, dim) + code_bytes(encoder, dim));
}

// A scale that can be divided by, else 0: the row is as good as zero.
TRIREME_SHARED float scale_for(float most, float levels) {
  const float scale = most / levels;
  return scale >= 1.17549435e-38f ? scale : 0;
}

TRIREME_SHARED float bits_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
TRIREME_SHARED std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// e4m3: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; |x| <= 448 but for rounding. Masks, not branches, for vectors.
TRIREME_SHARED std::uint8_t to_fp8(float x) {
  const std::uint32_t bits = float_bits(x), sign = bits >> 24 & 0x80, size = bits & 0x7fffffffu;
  // Below 2^-6 a multiple of 2^-9: the nearest integer, ties to even, in the low bits of 2^23 + it.
  const std::uint32_t least = float_bits(bits_float(size) * 0x1p9f + 0x1p23f) - float_bits(0x1p23f),
                      rounded = ((size + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3),
                      small = 0u - (size < 0x3c800000u), code = (least & small) | (rounded & ~small);
  return static_cast<std::uint8_t>(sign | (code < 0x7e ? code : 0x7e));
}
TRIREME_SHARED float from_fp8(std::uint8_t code) {
  const std::uint32_t size = code & 0x7fu, sign = (code & 0x80u) << 24;
  const std::uint32_t least = float_bits(static_cast<float>(static_cast<int>(size)) * 0x1p-9f),
                      normal = (size << 20) + (120u << 23);
  const std::uint32_t small = 0u - (size < 8);
  return bits_float(sign | (least & small) | (normal & ~small));
}

// Between the least and the greatest of a block's values.
TRIREME_SHARED float int8_scale(float low, float high) { return scale_for(high / 2 - low / 2, 127.5f); }

// fp16 and bf16: infinity becomes the largest number.
TRIREME_SHARED std::uint16_t saturated(Encoder encoder, std::uint16_t half) {
  const std::uint16_t beyond = encoder == fp16 ? 0x7c00 : 0x7f80;
  return (half & beyond) == beyond ? static_cast<std::uint16_t>(half - 1) : half;
}

TRIREME_SHARED float clamped(float x) { return x > largest_f32 ? largest_f32 : x < -largest_f32 ? -largest_f32 : x; }
TRIREME_SHARED bool is_finite(float x) { return x - x == 0; }

// Codes and values; scale 0: the row is zero (int8_row32: its least value).
TRIREME_SHARED std::uint32_t rate_code(Encoder encoder, float x, float scale, float least) {
  if (encoder == fp8) return to_fp8(scale == 0 ? 0 : x / scale);
  if (encoder == int4) return static_cast<std::uint32_t>(static_cast<int>(nearbyintf(scale == 0 ? 0 : x / scale)) + 8);
  const float q = scale == 0 ? 0 : nearbyintf(x / scale - least / scale);
  return static_cast<std::uint32_t>(q < 0 ? 0 : q > 255 ? 255 : q);
}
TRIREME_SHARED float rate_value(Encoder encoder, std::uint32_t code, float scale, float least) {
  if (encoder == fp8) return clamped(from_fp8(static_cast<std::uint8_t>(code)) * scale);
  if (encoder == int4) return clamped(static_cast<float>(static_cast<int>(code) - 8) * scale);
  return clamped(least + static_cast<float>(code) * scale);
}

}  // namespace trireme::coding

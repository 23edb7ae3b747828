// Codes of fixed rate: a warp a row (stages/fixed_rate.cpp is the host's).
#pragma once
#include "compression/stages/block.cuh"
#include "compression/stages/rate_values.h"

#include <cuda_fp16.h>

namespace trireme::coding {

__device__ inline std::uint16_t to_half(Encoder encoder, float x) {
  if (encoder == fp16) return saturated(fp16, __half_as_ushort(__float2half_rn(x)));
  const std::uint32_t bits = __float_as_uint(x);
  return saturated(bf16, static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
}
__device__ inline float from_half(Encoder encoder, std::uint16_t half) {
  return encoder == fp16 ? __half2float(__ushort_as_half(half))
                         : __uint_as_float(static_cast<std::uint32_t>(half) << 16);
}

__device__ inline void put_float(std::uint8_t* to, float x) {
  for (int b = 0; b < 4; ++b) to[b] = static_cast<std::uint8_t>(__float_as_uint(x) >> (8 * b));
}
__device__ inline float float_at(const std::uint8_t* p) {
  std::uint32_t bits = 0;
  for (int b = 0; b < 4; ++b) bits |= static_cast<std::uint32_t>(p[b]) << (8 * b);
  return __uint_as_float(bits);
}

// One row by one warp: its bytes (scales, codes), or where `self` is set what they would give.
__device__ inline void encode_row(Encoder encoder, const float* v, std::uint32_t dim, std::uint8_t* scales,
                                  std::uint8_t* codes, float* self) {
  const unsigned lane = threadIdx.x % 32;
  float scale = 0, least = 0;
  if (encoder == fp8 || encoder == int4) {
    float most = 0;
    for (std::uint32_t i = lane; i < dim; i += 32) most = max(most, __builtin_fabsf(v[i]));
    scale = scale_for(warp_max(most), encoder == fp8 ? largest_fp8 : largest_int4);
    if (lane == 0 && !self) put_float(scales, scale);
  }
  for (std::uint32_t first = 0; first < dim; first += 32) {
    const std::uint32_t i = first + lane;
    const bool there = i < dim;
    const float x = there ? v[i] : v[first];
    if (encoder == int8_row32) {
      const float low = warp_min(x), high = warp_max(x);
      least = low == 0 ? 0 : low;
      scale = int8_scale(low, high);
      if (lane == 0 && !self) put_float(scales + first / 4, scale), put_float(scales + first / 4 + 4, least);
    }
    const bool half = encoder == fp16 || encoder == bf16;
    const std::uint32_t code = half ? to_half(encoder, x) : rate_code(encoder, x, scale, least),
                        next = __shfl_xor_sync(all_lanes, code, 1);
    if (!there) continue;
    if (self) {
      self[i] = half ? from_half(encoder, static_cast<std::uint16_t>(code)) : rate_value(encoder, code, scale, least);
    } else if (half) {
      codes[2 * i] = static_cast<std::uint8_t>(code);
      codes[2 * i + 1] = static_cast<std::uint8_t>(code >> 8);
    } else if (encoder != int4) {
      codes[i] = static_cast<std::uint8_t>(code);
    } else if (i % 2 == 0) {
      codes[i / 2] = static_cast<std::uint8_t>(code | (i + 1 < dim ? next << 4 : 0));
    }
  }
}

// One row by one warp. False: a value is not finite.
__device__ inline bool decode_row(Encoder encoder, const std::uint8_t* scales, const std::uint8_t* codes,
                                  std::uint32_t dim, float* to) {
  const bool scaled = encoder == fp8 || encoder == int4, half = encoder == fp16 || encoder == bf16;
  float scale = scaled ? float_at(scales) : 0, least = 0;
  bool good = is_finite(scale);
  for (std::uint32_t i = threadIdx.x % 32; i < dim; i += 32) {
    float x;
    if (half) {
      x = from_half(encoder, static_cast<std::uint16_t>(codes[2 * i] | codes[2 * i + 1] << 8));
    } else {
      if (encoder == int8_row32) {
        const std::uint8_t* of = scales + i / rate_block * 8;
        scale = float_at(of), least = float_at(of + 4);
        good = good && is_finite(scale) && is_finite(least);
      }
      x = rate_value(encoder, encoder == int4 ? codes[i / 2] >> (i % 2 * 4) & 15 : codes[i], scale, least);
    }
    good = good && is_finite(x);
    to[i] = x;
  }
  return good;
}

}  // namespace trireme::coding

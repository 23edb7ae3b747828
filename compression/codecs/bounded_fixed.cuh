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

// Are rows of this length of fp8 taken by fours, up to 32 of them?
__host__ __device__ inline bool in_lanes(Encoder encoder, std::uint32_t dim, std::uint32_t stride, const float* rows) {
  return encoder == fp8 && dim % 4 == 0 && dim <= 128 && stride % 4 == 0 && aligned(rows, 16);
}

// Rows of fp8 by the block, a lane four values, four rows of each lane under way. `scales` at a multiple of 4. True: a
// value is not finite.
__device__ inline bool encode_fp8_rows(const float* rows, std::uint32_t n, std::uint32_t dim, std::uint32_t stride,
                                       std::uint8_t* scales, std::uint8_t* codes) {
  constexpr std::uint32_t ahead = 4;
  const std::uint32_t fours = dim / 4, lanes = 1u << bits_for(fours), own = threadIdx.x % lanes,
                      together = block_threads / lanes;
  bool bad = false;
  for (std::uint32_t first = threadIdx.x / lanes; first - threadIdx.x / lanes < n; first += ahead * together) {
    float4 x[ahead];
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k) {
      const std::uint32_t r = first + k * together;
      x[k] = make_float4(0, 0, 0, 0);
      if (r < n && own < fours) x[k] = *reinterpret_cast<const float4*>(rows + std::size_t{r} * stride + 4 * own);
    }
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k) {
      const std::uint32_t r = first + k * together;
      const float v[4] = {x[k].x, x[k].y, x[k].z, x[k].w};
      std::uint32_t most = 0, word = 0;
      for (int b = 0; b < 4; ++b) most = max(most, __float_as_uint(v[b]) & 0x7fffffffu);
      for (std::uint32_t step = lanes / 2; step > 0; step /= 2)
        most = max(most, __shfl_xor_sync(all_lanes, most, step));
      bad = bad || most >= 0x7f800000u;
      const float scale = scale_for(__uint_as_float(most), largest_fp8);
      for (int b = 0; b < 4; ++b) word |= rate_code(fp8, v[b], scale, 0) << (8 * b);
      if (r >= n || own >= fours) continue;
      reinterpret_cast<std::uint32_t*>(codes)[std::size_t{r} * fours + own] = word;
      if (own == 0) reinterpret_cast<float*>(scales)[r] = scale;
    }
  }
  return bad;
}

// And back. False: a scale is not finite.
__device__ inline bool decode_fp8_rows(const std::uint8_t* scales, const std::uint8_t* codes, std::uint32_t n,
                                       std::uint32_t dim, float* rows, std::uint32_t stride) {
  const std::uint32_t fours = dim / 4;
  bool good = true;
  Walk at(fours);
#pragma unroll 4
  for (std::uint32_t i = threadIdx.x; i < n * fours; i += block_threads, at.next()) {
    const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(codes)[i];
    const float scale = reinterpret_cast<const float*>(scales)[at.row];
    float v[4];
    for (int b = 0; b < 4; ++b) v[b] = rate_value(fp8, word >> (8 * b) & 255, scale, 0);
    good = good && is_finite(scale);
    *reinterpret_cast<float4*>(rows + std::size_t{at.row} * stride + 4 * at.column) =
        make_float4(v[0], v[1], v[2], v[3]);
  }
  return good;
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

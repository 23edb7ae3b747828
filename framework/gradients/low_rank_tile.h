// How the CUDA twins of low_rank.h see a block's tile of a matrix. Included by .cu files only.
#pragma once
#include "comm/cuda_launch.h"
#include "framework/gradients/low_rank.h"

namespace trireme::low_rank {

inline constexpr int threads = 256, lanes = 32, warps = threads / lanes, vector = 4;

inline __device__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % lanes; }
inline __device__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / lanes; }

// Where a block works. The matrix by value: from memory, its sizes would be read again after every store.
struct Tile {
  const LowRankMatrix x;
  std::int64_t row, column;
  std::int64_t split;  // the tile's place along the sum that tiles share
  bool whole;          // nothing of it lies outside, and its rows and the factors' lie on 16 bytes
};

// Kernels take turns in their direction: what one leaves in the cache is what the next begins with.
template <int which>
__device__ Tile tile_of_block(const LowRankJob& job) {
  const auto at = static_cast<std::int32_t>(which == 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  std::int64_t low = 0, high = job.count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (job.matrices[middle].first_tile[which] <= at ? low : high) = middle;
  }
  const LowRankMatrix x = job.matrices[low];
  constexpr int height = low_rank_tile[which][0], width = low_rank_tile[which][1];
  const std::int64_t across = (x.n + width - 1) / width, t = at - x.first_tile[which];
  const std::int64_t row = t / across * height, column = t % across * width;
  const bool vectors = x.n % vector == 0 && x.m % vector == 0 && aligned(job.error + x.error, 16) && aligned(x.p, 16) &&
                       aligned(x.q, 16) && aligned(x.own_q, 16) && aligned(job.gradient + x.gradient, 16) &&
                       (!job.before || aligned(job.before + x.error, 16));
  return {x, row, column, which == 0 ? t % across : t / across,
          vectors && row + height <= x.m && column + width <= x.n};
}

// Four neighbours from p + i on, of which those before `end` exist: zeros behind. Without a branch where all do and lie
// on 16 bytes, so that many loads are on their way at once.
template <bool whole = false>
__device__ float4 load(const float* p, std::int64_t i, std::int64_t end) {
  if (whole || (i + vector <= end && aligned(p + i, 16))) return *reinterpret_cast<const float4*>(p + i);
  float v[vector] = {};
#pragma unroll
  for (int k = 0; k < vector; ++k)
    if (i + k < end) v[k] = p[i + k];
  return make_float4(v[0], v[1], v[2], v[3]);
}
// What no kernel reads again soon: the cache is for M.
template <bool whole>
__device__ float4 load_last(const float* p, std::int64_t i, std::int64_t end) {
  return whole ? __ldcs(reinterpret_cast<const float4*>(p + i)) : load(p, i, end);
}
// Two neighbours.
template <bool whole>
__device__ float2 load_pair(const float* p, std::int64_t i, std::int64_t end) {
  if (whole) return *reinterpret_cast<const float2*>(p + i);
  return make_float2(i < end ? p[i] : 0.0f, i + 1 < end ? p[i + 1] : 0.0f);
}
// By name: left to the compiler, half of the stores of whole tiles became four of 4 bytes.
template <bool whole>
__device__ void store(float* p, std::int64_t i, std::int64_t end, float4 value) {
  if (whole || (i + vector <= end && aligned(p + i, 16))) {
    __stcg(reinterpret_cast<float4*>(p + i), value);
    return;
  }
  const float v[vector] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int k = 0; k < vector; ++k)
    if (i + k < end) p[i + k] = v[k];
}

inline __device__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
inline __device__ float4 plus_product(float a, float4 b, float4 c) {
  return make_float4(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w));
}
inline __device__ float plus_dot(float4 a, float4 b, float c) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, c))));
}

}  // namespace trireme::low_rank

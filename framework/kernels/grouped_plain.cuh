// Of the grouped kernels for f32, and for bf16 of any width and alignment: tiles of 32 x 32 in shared memory, one fused
// multiply-add after the other in the order of the sum. Included by grouped_*.cu only.
#pragma once
#include "comm/cuda_launch.h"
#include "framework/kernels/grouped_gemm.h"

#include <cuda_bf16.h>

namespace trireme::kernels {
namespace {

constexpr int plain_tile = 32, plain_threads = 256, plain_each = plain_tile * plain_tile / plain_threads;

__device__ float value_of(float v) { return v; }
__device__ float value_of(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ void put(float* p, float v) { *p = v; }
__device__ void put(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

// Element (i, j) of a matrix lies at p[i * down + j * right]; it has `rows` x `columns`.
template <class T>
struct Strided {
  const T* p;
  std::int64_t down, right, rows, columns;
};

template <class T>
__device__ void plain_fetch(float (&tile)[plain_tile][plain_tile + 1], const Strided<T>& m, std::int64_t i0,
                            std::int64_t j0) {
  const int lane = static_cast<int>(threadIdx.x) % plain_tile, other = static_cast<int>(threadIdx.x) / plain_tile;
  for (int k = 0; k < plain_each; ++k) {
    const int across = other + k * (plain_threads / plain_tile);
    const int i = m.right == 1 ? across : lane, j = m.right == 1 ? lane : across;  // lanes along memory
    const bool there = i0 + i < m.rows && j0 + j < m.columns;
    tile[i][j] = there ? value_of(m.p[(i0 + i) * m.down + (j0 + j) * m.right]) : 0.0f;
  }
}

// The tile of a b at (i0, j0): store(i, j, sum).
template <class T, class Store>
__device__ void plain_product(const Strided<T>& a, const Strided<T>& b, std::int64_t i0, std::int64_t j0, Store store) {
  __shared__ float as[plain_tile][plain_tile + 1], bs[plain_tile][plain_tile + 1];
  const int lane = static_cast<int>(threadIdx.x) % plain_tile, row = static_cast<int>(threadIdx.x) / plain_tile;
  constexpr int step = plain_threads / plain_tile;
  float sum[plain_each] = {};
  for (std::int64_t k0 = 0; k0 < a.columns; k0 += plain_tile) {
    plain_fetch(as, a, i0, k0);
    plain_fetch(bs, b, k0, j0);
    __syncthreads();
    for (int k = 0; k < plain_tile; ++k)
#pragma unroll
      for (int e = 0; e < plain_each; ++e) sum[e] = fmaf(as[row + e * step][k], bs[k][lane], sum[e]);
    __syncthreads();
  }
  for (int e = 0; e < plain_each; ++e)
    if (i0 + row + e * step < a.rows && j0 + lane < b.columns) store(i0 + row + e * step, j0 + lane, sum[e]);
}

// f(a value of the job's type).
template <class F>
void plain_type(DType type, F f) {
  if (type == DType::f32) return f(float{});
  if (type == DType::bf16) return f(__nv_bfloat16{});
  throw Error(ExitCode::bug, "grouped kernels", "on a GPU they take f32 and bf16");
}

unsigned plain_tiles(std::int64_t n) { return cuda_blocks(static_cast<std::size_t>(n), plain_tile); }

}  // namespace
}  // namespace trireme::kernels

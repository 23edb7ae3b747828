// The grouped kernels for f32, and for bf16 of any width and alignment: tiles of 32 x 32 in shared memory, one fused
// multiply-add after the other in the order of the sum. Included by grouped_gemm.cu only.
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

__device__ void add_gradient(const GroupedAdapter& w, bool of_a, std::int64_t in, int of_rank, std::int64_t c,
                             float v) {
  if (of_a)
    static_cast<float*>(w.da)[of_rank * in + c] += v;
  else  // the paper prints it without the scale
    static_cast<float*>(w.db)[c * w.rank + of_rank] += w.scale * v;
}

// Blocks: x 64 rows of a group, y tiles of the product's columns, z halves of the rows.
template <class T>
__global__ void __launch_bounds__(plain_threads) plain_shrink_kernel(const __grid_constant__ GroupedShrink job) {
  const GroupedBlock at = job.table.blocks[blockIdx.x];
  const GroupedRows g = job.table.rows[at.group];
  const GroupedAdapter w = job.table.adapters[at.group];
  if (static_cast<std::int64_t>(blockIdx.y) * plain_tile >= w.rank) return;
  const Strided<T> x{static_cast<const T*>(job.x) + g.first * job.width, job.width, 1, g.last - g.first, job.width};
  const Strided<T> weights = job.backward ? Strided<T>{static_cast<const T*>(w.b), w.rank, 1, job.width, w.rank}
                                          : Strided<T>{static_cast<const T*>(w.a), 1, job.width, job.width, w.rank};
  T* const s = static_cast<T*>(job.s) + g.first * job.table.rank_stride;
  const float scale = job.backward ? w.scale : 1.0f;
  plain_product(x, weights, at.block * grouped_rows + blockIdx.z * plain_tile, blockIdx.y * plain_tile,
                [&](std::int64_t i, std::int64_t j, float v) { put(s + i * job.table.rank_stride + j, v * scale); });
}

template <class T>
__global__ void __launch_bounds__(plain_threads) plain_expand_kernel(const __grid_constant__ GroupedExpand job) {
  const GroupedBlock at = job.table.blocks[blockIdx.x];
  const GroupedRows g = job.table.rows[at.group];
  const GroupedAdapter w = job.table.adapters[at.group];
  if (w.rank == 0) return;
  const Strided<T> s{static_cast<const T*>(job.s) + g.first * job.table.rank_stride, job.table.rank_stride, 1,
                     g.last - g.first, w.rank};
  const Strided<T> weights = job.backward ? Strided<T>{static_cast<const T*>(w.a), job.width, 1, w.rank, job.width}
                                          : Strided<T>{static_cast<const T*>(w.b), 1, w.rank, w.rank, job.width};
  T* const y = static_cast<T*>(job.y) + g.first * job.width;
  plain_product(s, weights, at.block * grouped_rows + blockIdx.z * plain_tile, blockIdx.y * plain_tile,
                [&](std::int64_t i, std::int64_t j, float v) {
                  float by = w.scale;
                  if (job.backward) {
                    const DropoutWords words = dropout_words(g.dropout, job.module, static_cast<std::uint32_t>(i),
                                                             static_cast<std::uint32_t>(j / 4));
                    by = g.dropout.threshold == 0 ? 1.0f : dropout_factor(g.dropout, words.word[j % 4]);
                  }
                  T* const to = y + i * job.width + j;
                  put(to, fmaf(v, by, value_of(*to)));
                });
}

// Blocks: x tiles of columns, of x first and then of dy; y groups; z tiles of the rank.
template <class T>
__global__ void __launch_bounds__(plain_threads) plain_outer_kernel(const __grid_constant__ GroupedOuter job) {
  const GroupedRows g = job.table.rows[blockIdx.y];
  const GroupedAdapter w = job.table.adapters[blockIdx.y];
  if (static_cast<std::int64_t>(blockIdx.z) * plain_tile >= w.rank) return;
  const auto in_tiles = static_cast<unsigned>((job.in + plain_tile - 1) / plain_tile);
  const bool of_a = blockIdx.x < in_tiles;
  const std::int64_t width = of_a ? job.in : job.out, rows = g.last - g.first, stride = job.table.rank_stride;
  const Strided<T> n{static_cast<const T*>(of_a ? job.ds : job.s) + g.first * stride, 1, stride, w.rank, rows};
  const Strided<T> m{static_cast<const T*>(of_a ? job.x : job.dy) + g.first * width, width, 1, rows, width};
  plain_product(
      n, m, blockIdx.z * plain_tile, (of_a ? blockIdx.x : blockIdx.x - in_tiles) * plain_tile,
      [&](std::int64_t j, std::int64_t c, float v) { add_gradient(w, of_a, job.in, static_cast<int>(j), c, v); });
}

__device__ int group_of(const GroupedDropout& job, std::int64_t row) {
  int low = 0, high = static_cast<int>(job.groups);  // the last that begins at or before the row
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (job.rows[middle].first <= row ? low : high) = middle;
  }
  return low;
}

// A block of x takes a row, a thread four columns at a time.
template <class T>
__global__ void __launch_bounds__(plain_threads) plain_dropout_kernel(const __grid_constant__ GroupedDropout job) {
  const std::int64_t row = blockIdx.x;
  const GroupedRows g = job.rows[group_of(job, row)];
  const bool drop = row >= g.first && row < g.last && g.dropout.threshold != 0;
  const T* const from = static_cast<const T*>(job.from) + row * job.width;
  T* const to = static_cast<T*>(job.to) + row * job.width;
  for (std::int64_t c = threadIdx.x * 4; c < job.width; c += plain_threads * 4) {
    DropoutWords words{};
    if (drop)
      words = dropout_words(g.dropout, job.module, static_cast<std::uint32_t>(row - g.first),
                            static_cast<std::uint32_t>(c / 4));
    for (int k = 0; k < 4 && c + k < job.width; ++k)
      put(to + c + k, drop ? value_of(from[c + k]) * dropout_factor(g.dropout, words.word[k]) : value_of(from[c + k]));
  }
}

// f(a value of the job's type).
template <class F>
void plain_type(DType type, F f) {
  if (type == DType::f32) return f(float{});
  if (type == DType::bf16) return f(__nv_bfloat16{});
  throw Error(ExitCode::bug, "grouped kernels", "on a GPU they take f32 and bf16");
}

unsigned plain_tiles(std::int64_t n) { return cuda_blocks(static_cast<std::size_t>(n), plain_tile); }

void plain_shrink(const GroupedShrink& job, Place place) {
  const dim3 grid(static_cast<unsigned>(job.table.block_count), plain_tiles(job.table.rank_stride), 2);
  plain_type(job.type,
             [&](auto v) { plain_shrink_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job); });
  check_launch("grouped_shrink");
}

void plain_expand(const GroupedExpand& job, Place place) {
  const dim3 grid(static_cast<unsigned>(job.table.block_count), plain_tiles(job.width), 2);
  plain_type(job.type,
             [&](auto v) { plain_expand_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job); });
  check_launch("grouped_expand");
}

void plain_outer(const GroupedOuter& job, Place place) {
  const dim3 grid(plain_tiles(job.in) + plain_tiles(job.out), static_cast<unsigned>(job.table.groups),
                  plain_tiles(job.table.rank_stride));
  plain_type(job.type,
             [&](auto v) { plain_outer_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job); });
  check_launch("grouped_outer");
}

void plain_dropout(const GroupedDropout& job, Place place) {
  plain_type(job.type, [&](auto v) {
    plain_dropout_kernel<decltype(v)><<<static_cast<unsigned>(job.tokens), plain_threads, 0, cuda_stream(place)>>>(job);
  });
  check_launch("grouped_dropout");
}

}  // namespace
}  // namespace trireme::kernels

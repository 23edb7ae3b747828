// The kernels of low_rank.cu for more than 16 ranks, 32 at a time, on tensor cores: on the others 256 operations a
// value would take longer than its bytes. Each f32 is two numbers of TF32, of whose four products three count, so that
// sums keep the accuracy of f32. What a tensor core calls k, m and n are laid so that a lane reads four neighbours of
// M.
#pragma once
#include "framework/gradients/low_rank_tile.h"

namespace trireme::low_rank {

struct Split {
  std::uint32_t high, low;
};
inline __device__ Split split(float x) {
  const std::uint32_t high = __float_as_uint(x) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

// c += a b, 16 x 8 by 8 x 8; of a: rows g and g + 8, k = t, then k = t + 4; of b: k = t and t + 4, column g; of c: row
// g, columns 2 t and 2 t + 1, then row g + 8. g: lane / 4, t: lane % 4.
inline __device__ void tensor_multiply_add(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
inline __device__ void multiply_add(float (&c)[4], const Split (&a)[4], const Split (&b)[2]) {
  tensor_multiply_add(c, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
  tensor_multiply_add(c, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
  tensor_multiply_add(c, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
}

inline constexpr int tensor_ranks = 32;

// Rows of a factor: of `columns` values from `column` on, of ranks first_rank and on, zeros where there is none.
template <int columns, int stride>
__device__ void stage_factor(const float* factor, std::int64_t length, std::int64_t ranks, std::int64_t first_rank,
                             std::int64_t column, float* to) {
  for (int at = static_cast<int>(threadIdx.x); at < tensor_ranks * columns / vector; at += threads) {
    const int rank = at / (columns / vector), i = at % (columns / vector) * vector;
    const bool there = first_rank + rank < ranks;
    *reinterpret_cast<float4*>(to + rank * stride + i) =
        there ? load(factor + (first_rank + rank) * length, column + i, length) : make_float4(0, 0, 0, 0);
  }
}

// P: M is a, ranks are columns of b. A warp has 16 rows and half the columns.
struct TensorProject {
  static constexpr int rows = low_rank_tile[0][0], columns = low_rank_tile[0][1], strips = rows / 16;
  static constexpr int own_columns = columns / (warps / strips), chunk = 16, together = 2;
  static constexpr int stride = columns + 16, sum_stride = rows + vector;  // no two rows in the same banks
  static constexpr int room = tensor_ranks * stride;
  static_assert(warps / strips == 2);

  template <bool whole>
  static __device__ void multiply(const LowRankJob& job, const Tile& t, std::int64_t first_rank, const float* q,
                                  float (&sum)[4][4]) {
    const LowRankMatrix& x = t.x;
    const int g = lane_of_thread() / 4, own = warp_of_thread() / strips * own_columns + lane_of_thread() % 4 * vector;
    const std::int64_t row = t.row + warp_of_thread() % strips * 16 + g;
    float* const error = job.error + x.error;
    const float* const source = first_rank > 0 ? error : job.gradient + x.gradient;
    for (int c = 0; c < own_columns; c += together * chunk) {
      float4 v[together][2];
#pragma unroll
      for (int u = 0; u < together; ++u)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int64_t r = row + 8 * h, i = r * x.n + t.column + own + c + u * chunk,
                             end = r < x.m ? (r + 1) * x.n : 0;
          v[u][h] = load<whole>(source, i, end);
          if (first_rank == 0 && job.before) v[u][h] = plus(load<whole>(job.before + x.error, i, end), v[u][h]);
        }
#pragma unroll
      for (int u = 0; u < together; ++u) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int64_t r = row + 8 * h, i = r * x.n + t.column + own + c + u * chunk;
          if (first_rank == 0) store<whole>(error, i, r < x.m ? (r + 1) * x.n : 0, v[u][h]);
        }
        const Split first[4] = {split(v[u][0].x), split(v[u][1].x), split(v[u][0].y), split(v[u][1].y)};
        const Split second[4] = {split(v[u][0].z), split(v[u][1].z), split(v[u][0].w), split(v[u][1].w)};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float4 b = *reinterpret_cast<const float4*>(q + (8 * j + g) * stride + own + c + u * chunk);
          multiply_add(sum[j], first, {split(b.x), split(b.y)});
          multiply_add(sum[j], second, {split(b.z), split(b.w)});
        }
      }
    }
  }

  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float* shared) {
    const LowRankMatrix& x = t.x;
    stage_factor<columns, stride>(x.q, x.n, x.r, first_rank, t.column, shared);
    __syncthreads();
    float sum[4][4] = {};
    if (t.whole)
      multiply<true>(job, t, first_rank, shared, sum);
    else
      multiply<false>(job, t, first_rank, shared, sum);
    const int row = warp_of_thread() % strips * 16 + lane_of_thread() / 4, rank = lane_of_thread() % 4 * 2;
    for (int half = 1; half >= 0; --half) {
      __syncthreads();
      if (warp_of_thread() / strips == half)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float& at = shared[(8 * j + rank + k % 2) * sum_stride + row + k / 2 * 8];
            at = half ? sum[j][k] : at + sum[j][k];
          }
    }
    __syncthreads();
    float* out = job.partial + x.partial_p + t.split * x.r * x.m;
    for (int at = static_cast<int>(threadIdx.x); at < tensor_ranks * rows; at += threads) {
      const int k = at / rows, i = at % rows;
      if (first_rank + k < x.r && t.row + i < x.m) out[(first_rank + k) * x.m + t.row + i] = shared[k * sum_stride + i];
    }
    __syncthreads();
  }
};

// Own Q: P is a, M is b. A warp has 32 columns and half the rows, a lane four neighbours of four rows.
struct TensorBackProject {
  static constexpr int rows = low_rank_tile[1][0], columns = low_rank_tile[1][1], strips = columns / 32;
  static constexpr int own_rows = rows / (warps / strips), chunk = 16;
  static constexpr int stride = rows + 16, sum_stride = columns + vector;
  static constexpr int room = tensor_ranks * stride;
  static_assert(warps / strips == 2);

  static __device__ float of(const float4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

  template <bool whole>
  static __device__ void multiply(const LowRankJob& job, const Tile& t, const float* p, float (&sum)[2][4][4]) {
    const LowRankMatrix& x = t.x;
    const int g = lane_of_thread() / 4, first = warp_of_thread() / strips * own_rows + lane_of_thread() % 4 * vector;
    const std::int64_t column = t.column + warp_of_thread() % strips * 32 + g * vector;
    const float* const m = job.error + x.error + t.row * x.n;
#pragma unroll 2
    for (int c = 0; c < own_rows; c += chunk) {
      float4 v[vector], a[4];
#pragma unroll
      for (int u = 0; u < vector; ++u) {
        const std::int64_t row = first + c + u;
        v[u] = load<whole>(m + row * x.n, column, t.row + row < x.m ? x.n : 0);
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) a[u] = *reinterpret_cast<const float4*>(p + (8 * u + g) * stride + first + c);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        Split b[4][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i][0] = split(of(v[2 * k], i)), b[i][1] = split(of(v[2 * k + 1], i));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Split own[4] = {split(of(a[2 * h], 2 * k)), split(of(a[2 * h + 1], 2 * k)),
                                split(of(a[2 * h], 2 * k + 1)), split(of(a[2 * h + 1], 2 * k + 1))};
#pragma unroll
          for (int i = 0; i < 4; ++i) multiply_add(sum[h][i], own, b[i]);
        }
      }
    }
  }

  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float* shared) {
    const LowRankMatrix& x = t.x;
    stage_factor<rows, stride>(x.p, x.m, x.r, first_rank, t.row, shared);
    __syncthreads();
    float sum[2][4][4] = {};
    if (t.whole)
      multiply<true>(job, t, shared, sum);
    else
      multiply<false>(job, t, shared, sum);
    // Of rank 8 u + g: columns 8 t and on, in the order of the products' columns 2 t and 2 t + 1.
    const int g = lane_of_thread() / 4, own = warp_of_thread() % strips * 32 + lane_of_thread() % 4 * 8;
    for (int half = 1; half >= 0; --half) {
      __syncthreads();
      if (warp_of_thread() / strips == half)
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& at = shared[(8 * u + g) * sum_stride + own + 4 * e + i];
              const float mine = sum[u / 2][i][u % 2 * 2 + e];
              at = half ? mine : at + mine;
            }
    }
    __syncthreads();
    float* out = job.partial + x.partial_q + t.split * x.r * x.n;
    for (int at = static_cast<int>(threadIdx.x); at < tensor_ranks * columns; at += threads) {
      const int k = at / columns, i = at % columns;
      if (first_rank + k < x.r && t.column + i < x.n)
        out[(first_rank + k) * x.n + t.column + i] = shared[k * sum_stride + i];
    }
    __syncthreads();
  }
};

// P is a, from shared memory; the warp's 16 columns of both Q are b, in registers. A lane has four neighbours of two
// rows: columns 0 and 1 of the first product, 2 and 3 of the second.
struct TensorApproximate {
  static constexpr int rows = low_rank_tile[2][0], columns = low_rank_tile[2][1], chunk = 16, together = 2;
  static constexpr int stride = rows + 8, room = tensor_ranks * stride;
  static_assert(columns == 16 * warps);

  // b of four products over k, for two products' columns.
  static __device__ void load_factor(const float* q, const Tile& t, std::int64_t first_rank, float (&b)[4][2][2]) {
    const int g = lane_of_thread() / 4;
    const std::int64_t column = t.column + warp_of_thread() * 16 + g / 2 * 4 + g % 2;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const std::int64_t rank = first_rank + 8 * k + lane_of_thread() % 4 + 4 * e, i = column + 2 * h;
          b[k][h][e] = rank < t.x.r && i < t.x.n ? q[rank * t.x.n + i] : 0;
        }
  }

  template <bool whole>
  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float* p) {
    const LowRankMatrix& x = t.x;
    stage_factor<rows, stride>(x.p, x.m, x.r, first_rank, t.row, p);
    float q[4][2][2], own_q[4][2][2];
    load_factor(x.q, t, first_rank, q);
    load_factor(x.own_q, t, first_rank, own_q);
    __syncthreads();
    const int g = lane_of_thread() / 4, k_of_lane = lane_of_thread() % 4;
    const std::int64_t column = t.column + warp_of_thread() * 16 + k_of_lane * vector;
    const auto end = [&](int row) { return t.row + row < x.m ? x.n : 0; };
    float *const m = job.error + x.error + t.row * x.n, *const out = job.gradient + x.gradient + t.row * x.n;
    for (int c = 0; c < rows; c += together * chunk) {
      float4 error[together][2];
#pragma unroll
      for (int u = 0; u < together; ++u)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = c + u * chunk + g + 8 * h;
          error[u][h] = make_float4(0, 0, 0, 0);
          if (job.before) error[u][h] = load<whole>(m + row * x.n, column, end(row));
        }
#pragma unroll
      for (int u = 0; u < together; ++u) {
        float sum[2][4] = {}, lost[2][4] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float* const at = p + (8 * k + k_of_lane) * stride + c + u * chunk + g;
          const Split a[4] = {split(at[0]), split(at[8]), split(at[4 * stride]), split(at[4 * stride + 8])};
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            multiply_add(sum[h], a, {split(q[k][h][0]), split(q[k][h][1])});
            multiply_add(lost[h], a, {split(own_q[k][h][0]), split(own_q[k][h][1])});
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = c + u * chunk + g + 8 * h, i = 2 * h;
          const float4 e = error[u][h];
          if (job.before)
            store<whole>(m + row * x.n, column, end(row),
                         make_float4(e.x - lost[0][i], e.y - lost[0][i + 1], e.z - lost[1][i], e.w - lost[1][i + 1]));
          float4 all = make_float4(sum[0][i], sum[0][i + 1], sum[1][i], sum[1][i + 1]);
          if (first_rank > 0) all = plus(load<whole>(out + row * x.n, column, end(row)), all);
          store<whole>(out + row * x.n, column, end(row), all);
        }
      }
    }
    __syncthreads();
  }
};

__global__ void __launch_bounds__(threads, 3) tensor_project_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ __align__(16) float shared[TensorProject::room];
  const Tile t = tile_of_block<0>(job);
  for (std::int64_t rank = 0; rank < t.x.r; rank += tensor_ranks) TensorProject::run(job, t, rank, shared);
}

__global__ void __launch_bounds__(threads, 2) tensor_back_project_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ __align__(16) float shared[TensorBackProject::room];
  const Tile t = tile_of_block<1>(job);
  for (std::int64_t rank = 0; rank < t.x.r; rank += tensor_ranks) TensorBackProject::run(job, t, rank, shared);
}

__global__ void __launch_bounds__(threads, 2) tensor_approximate_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ __align__(16) float shared[TensorApproximate::room];
  const Tile t = tile_of_block<2>(job);
  for (std::int64_t rank = 0; rank < t.x.r; rank += tensor_ranks)
    if (t.whole)
      TensorApproximate::run<true>(job, t, rank, shared);
    else
      TensorApproximate::run<false>(job, t, rank, shared);
}

}  // namespace trireme::low_rank

// The kernels of low_rank.cu for more than 16 ranks, 32 at a time, on tensor cores: on the others 256 operations a
// value would take longer than its bytes. Each f32 is two numbers of TF32, of whose four products three count, so that
// sums keep the accuracy of f32. What a tensor core calls k, m and n are laid so that a lane has neighbours of M in the
// registers that are multiplied; factors lie in shared memory as a lane reads them, 16 bytes at a time.
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

// All of a with all of b, the smallest products first; neighbours in time add to different sums.
template <int as, int bs>
__device__ void multiply_add(float (&c)[as][bs][4], const Split (&a)[as][4], const Split (&b)[bs][2]) {
#pragma unroll
  for (int i = 0; i < as; ++i)
#pragma unroll
    for (int j = 0; j < bs; ++j)
      tensor_multiply_add(c[i][j], a[i][0].low, a[i][1].low, a[i][2].low, a[i][3].low, b[j][0].high, b[j][1].high);
#pragma unroll
  for (int i = 0; i < as; ++i)
#pragma unroll
    for (int j = 0; j < bs; ++j)
      tensor_multiply_add(c[i][j], a[i][0].high, a[i][1].high, a[i][2].high, a[i][3].high, b[j][0].low, b[j][1].low);
#pragma unroll
  for (int i = 0; i < as; ++i)
#pragma unroll
    for (int j = 0; j < bs; ++j)
      tensor_multiply_add(c[i][j], a[i][0].high, a[i][1].high, a[i][2].high, a[i][3].high, b[j][0].high, b[j][1].high);
}

inline constexpr int tensor_ranks = 32, chunk = 16;

// A factor's values from `from` on, `length` of them, of ranks first_rank and on, zeros where there is none. Of 16
// values a lane has 4 t and on, two for each of two products (the index between chunk and half), of rank g and g + 8
// of either half: ranks one by one if they are a's rows, in turns with the values if they are b's columns.
template <int length, bool as_rows, bool whole>
__device__ void stage_factor(const float* factor, std::int64_t end, std::int64_t ranks, std::int64_t first_rank,
                             std::int64_t from, float4* to) {
  constexpr int pairs = length / chunk * 2 * lanes / threads;
#pragma unroll
  for (int k = 0; k < pairs; ++k) {
    const int part = k * warps + warp_of_thread(), half = part % 2, lane = lane_of_thread();
    const std::int64_t rank = first_rank + 16 * half + lane / 4, i = from + part / 2 * chunk + lane % 4 * vector;
    const float4 zero = make_float4(0, 0, 0, 0);
    const float4 a = rank < ranks ? load<whole>(factor + rank * end, i, end) : zero;
    const float4 b = rank + 8 < ranks ? load<whole>(factor + (rank + 8) * end, i, end) : zero;
    float4* const own = to + (part / 2 * 4 + half) * lanes + lane;
    own[0] = as_rows ? make_float4(a.x, b.x, a.y, b.y) : make_float4(a.x, a.y, b.x, b.y);
    own[2 * lanes] = as_rows ? make_float4(a.z, b.z, a.w, b.w) : make_float4(a.z, a.w, b.z, b.w);
  }
}

// P: ranks are a's rows, M's rows columns of b. A warp has 32 rows and a quarter of the columns.
struct TensorProject {
  static constexpr int rows = low_rank_tile[0][0], columns = low_rank_tile[0][1], strips = rows / 32;
  static constexpr int parts = warps / strips, own_columns = columns / parts;
  static constexpr int sum_stride = rows + 8;  // no two ranks in the same banks
  static constexpr int sums = parts * tensor_ranks * sum_stride, factors = tensor_ranks * columns;
  static constexpr int room = sums > factors ? sums : factors;

  template <bool whole>
  static __device__ void multiply(const LowRankJob& job, const Tile& t, std::int64_t first_rank, const float4* q,
                                  float (&sum)[2][4][4]) {
    const LowRankMatrix& x = t.x;
    const int lane = lane_of_thread(), part = warp_of_thread() / strips;
    const std::int64_t row = t.row + warp_of_thread() % strips * 32 + lane / 4;
    const std::int64_t column = t.column + part * own_columns + lane % 4 * vector;
    float* const error = job.error + x.error;
    const float* const source = first_rank > 0 ? error : job.gradient + x.gradient;
    for (int c = 0; c < own_columns; c += chunk) {
      const auto at = [&](int u) { return (row + 8 * u) * x.n + column + c; };
      const auto end = [&](int u) { return row + 8 * u < x.m ? (row + 8 * u + 1) * x.n : 0; };
      float4 v[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) v[u] = load_last<whole>(source, at(u), end(u));
      if (first_rank == 0) {
        if (job.before)
#pragma unroll
          for (int u = 0; u < 4; ++u) v[u] = plus(load_last<whole>(job.before + x.error, at(u), end(u)), v[u]);
#pragma unroll
        for (int u = 0; u < 4; ++u) store<whole>(error, at(u), end(u), v[u]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        Split a[2][4], b[4][2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float4 own = q[((part * own_columns + c) / chunk * 4 + 2 * e + h) * lanes + lane];
          a[h][0] = split(own.x), a[h][1] = split(own.y), a[h][2] = split(own.z), a[h][3] = split(own.w);
        }
#pragma unroll
        for (int u = 0; u < 4; ++u) b[u][0] = split(e ? v[u].z : v[u].x), b[u][1] = split(e ? v[u].w : v[u].y);
        multiply_add(sum, a, b);
      }
    }
  }

  template <bool whole>
  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float4* shared) {
    const LowRankMatrix& x = t.x;
    stage_factor<columns, true, whole>(x.q, x.n, x.r, first_rank, t.column, shared);
    __syncthreads();
    float sum[2][4][4] = {};
    multiply<whole>(job, t, first_rank, shared, sum);
    __syncthreads();
    float* const all = reinterpret_cast<float*>(shared);
    const int g = lane_of_thread() / 4, row = warp_of_thread() % strips * 32 + lane_of_thread() % 4 * 2;
    float* const own = all + warp_of_thread() / strips * tensor_ranks * sum_stride + g * sum_stride + row;
#pragma unroll
    for (int h = 0; h < 4; ++h)
#pragma unroll
      for (int u = 0; u < 4; ++u)
        *reinterpret_cast<float2*>(own + 8 * h * sum_stride + 8 * u) =
            make_float2(sum[h / 2][u][h % 2 * 2], sum[h / 2][u][h % 2 * 2 + 1]);
    __syncthreads();
    float* const out = job.partial + x.partial_p + t.split * x.r * x.m;
    for (int at = static_cast<int>(threadIdx.x); at < tensor_ranks * rows; at += threads) {
      const int k = at / rows, i = at % rows;
      float total = 0;
#pragma unroll
      for (int p = 0; p < parts; ++p) total += all[(p * tensor_ranks + k) * sum_stride + i];
      if (first_rank + k < x.r && t.row + i < x.m) out[(first_rank + k) * x.m + t.row + i] = total;
    }
    __syncthreads();
  }
};

// Own Q: M's columns are a's rows, in turns, ranks columns of b. A warp has 32 columns and half the rows.
struct TensorBackProject {
  static constexpr int rows = low_rank_tile[1][0], columns = low_rank_tile[1][1], strips = columns / 32;
  static constexpr int parts = warps / strips, own_rows = rows / parts, step = 2 * chunk;
  static constexpr int sum_stride = columns + vector;
  static constexpr int sums = parts * tensor_ranks * sum_stride, factors = tensor_ranks * rows;
  static constexpr int room = sums > factors ? sums : factors;

  template <bool whole>
  static __device__ void multiply(const LowRankJob& job, const Tile& t, const float4* p, float (&sum)[2][4][4]) {
    const LowRankMatrix& x = t.x;
    const int lane = lane_of_thread(), first = warp_of_thread() / strips * own_rows;
    const std::int64_t row = t.row + first + lane % 4 * vector;
    const std::int64_t column = t.column + warp_of_thread() % strips * 32 + lane / 4 * 2;
    const float* const m = job.error + x.error;
    for (int c = 0; c < own_rows; c += step) {
      float2 v[step / 8][2][2];  // of a product: two rows, two times 16 columns
#pragma unroll
      for (int s = 0; s < step / 8; ++s)
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const std::int64_t r = row + c + s / 2 * chunk + s % 2 * 2 + k;
            v[s][k][h] = load_pair<whole>(m + r * x.n, column + h * chunk, r < x.m ? x.n : 0);
          }
#pragma unroll
      for (int s = 0; s < step / 8; ++s) {
        Split a[2][4], b[4][2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          a[h][0] = split(v[s][0][h].x), a[h][1] = split(v[s][0][h].y);
          a[h][2] = split(v[s][1][h].x), a[h][3] = split(v[s][1][h].y);
          const float4 own = p[((first + c) / chunk * 4 + 2 * s + h) * lanes + lane];
          b[2 * h][0] = split(own.x), b[2 * h][1] = split(own.y);
          b[2 * h + 1][0] = split(own.z), b[2 * h + 1][1] = split(own.w);
        }
        multiply_add(sum, a, b);
      }
    }
  }

  template <bool whole>
  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float4* shared) {
    const LowRankMatrix& x = t.x;
    stage_factor<rows, false, whole>(x.p, x.m, x.r, first_rank, t.row, shared);
    __syncthreads();
    float sum[2][4][4] = {};
    multiply<whole>(job, t, shared, sum);
    __syncthreads();
    float* const all = reinterpret_cast<float*>(shared);
    const int rank = lane_of_thread() % 4 * 2, column = warp_of_thread() % strips * 32 + lane_of_thread() / 4 * 2;
    float* const own = all + (warp_of_thread() / strips * tensor_ranks + rank) * sum_stride + column;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          *reinterpret_cast<float2*>(own + (8 * j + e) * sum_stride + h * chunk) =
              make_float2(sum[h][j][e], sum[h][j][e + 2]);
    __syncthreads();
    float* const out = job.partial + x.partial_q + t.split * x.r * x.n;
    for (int at = static_cast<int>(threadIdx.x); at < tensor_ranks * columns; at += threads) {
      const int k = at / columns, i = at % columns;
      float total = 0;
#pragma unroll
      for (int p = 0; p < parts; ++p) total += all[(p * tensor_ranks + k) * sum_stride + i];
      if (first_rank + k < x.r && t.column + i < x.n) out[(first_rank + k) * x.n + t.column + i] = total;
    }
    __syncthreads();
  }
};

// M's rows are a's rows, in turns, and P is a, split in shared memory; the warp's 16 columns of both Q are b, split in
// registers. A lane has four neighbours of two rows: columns 0 and 1 of the first product, 2 and 3 of the second.
struct TensorApproximate {
  static constexpr int rows = low_rank_tile[2][0], columns = low_rank_tile[2][1], together = 2;
  static constexpr int room = 2 * tensor_ranks * rows;
  static_assert(columns == chunk * warps);

  // Of 16 rows and 8 ranks: the high parts of 32 lanes, then the low ones.
  template <bool whole>
  static __device__ void stage(const Tile& t, std::int64_t first_rank, uint4* to) {
#pragma unroll
    for (int k = 0; k < rows / chunk * 4 * lanes / threads; ++k) {
      const int part = k * warps + warp_of_thread(), lane = lane_of_thread();
      const std::int64_t rank = first_rank + part % 4 * 8 + lane % 4, i = t.row + part / 4 * chunk + lane / 4 * 2;
      const float2 zero = make_float2(0, 0);
      const float2 a = rank < t.x.r ? load_pair<whole>(t.x.p + rank * t.x.m, i, t.x.m) : zero;
      const float2 b = rank + 4 < t.x.r ? load_pair<whole>(t.x.p + (rank + 4) * t.x.m, i, t.x.m) : zero;
      const Split s[4] = {split(a.x), split(a.y), split(b.x), split(b.y)};
      to[2 * part * lanes + lane] = make_uint4(s[0].high, s[1].high, s[2].high, s[3].high);
      to[(2 * part + 1) * lanes + lane] = make_uint4(s[0].low, s[1].low, s[2].low, s[3].low);
    }
  }

  // b of four products over k: columns of two products from `first` on.
  static __device__ void load_factor(const float* q, const Tile& t, std::int64_t first_rank, int first,
                                     Split (&b)[4][4][2]) {
    const int g = lane_of_thread() / 4;
    const std::int64_t column = t.column + warp_of_thread() * chunk + g / 2 * 4 + g % 2;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const std::int64_t rank = first_rank + 8 * k + lane_of_thread() % 4 + 4 * e, i = column + 2 * h;
          b[k][first + h][e] = split(rank < t.x.r && i < t.x.n ? q[rank * t.x.n + i] : 0.0f);
        }
  }

  template <bool whole>
  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, uint4* p) {
    const LowRankMatrix& x = t.x;
    Split b[4][4][2];
    load_factor(x.q, t, first_rank, 0, b);
    load_factor(x.own_q, t, first_rank, 2, b);
    stage<whole>(t, first_rank, p);
    __syncthreads();
    const int lane = lane_of_thread();
    const std::int64_t column = t.column + warp_of_thread() * chunk + lane % 4 * vector;
    float *const m = job.error + x.error, *const out = job.gradient + x.gradient;
    for (int c = 0; c < rows; c += together * chunk) {
      const auto row = [&](int u, int h) { return t.row + c + u * chunk + lane / 4 * 2 + h; };
      const auto end = [&](int u, int h) { return row(u, h) < x.m ? x.n : 0; };
      float4 error[together][2] = {};
      if (job.before)
#pragma unroll
        for (int u = 0; u < together; ++u)
#pragma unroll
          for (int h = 0; h < 2; ++h) error[u][h] = load<whole>(m + row(u, h) * x.n, column, end(u, h));
#pragma unroll
      for (int u = 0; u < together; ++u) {
        float sum[1][4][4] = {};  // of both products with Q, then with own Q
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint4 high = p[2 * ((c / chunk + u) * 4 + k) * lanes + lane];
          const uint4 low = p[(2 * ((c / chunk + u) * 4 + k) + 1) * lanes + lane];
          const Split a[1][4] = {{{high.x, low.x}, {high.y, low.y}, {high.z, low.z}, {high.w, low.w}}};
          multiply_add(sum, a, b[k]);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const auto four = [&](int j) {
            return make_float4(sum[0][j][2 * h], sum[0][j][2 * h + 1], sum[0][j + 1][2 * h], sum[0][j + 1][2 * h + 1]);
          };
          const float4 e = error[u][h], lost = four(2);
          if (job.before)
            store<whole>(m + row(u, h) * x.n, column, end(u, h),
                         make_float4(e.x - lost.x, e.y - lost.y, e.z - lost.z, e.w - lost.w));
          float4 all = four(0);
          if (first_rank > 0) all = plus(load<whole>(out + row(u, h) * x.n, column, end(u, h)), all);
          store<whole>(out + row(u, h) * x.n, column, end(u, h), all);
        }
      }
    }
    __syncthreads();
  }
};

template <class Part, class Value>
__device__ void run_ranks(const LowRankJob& job, const Tile& t, Value* shared) {
  for (std::int64_t rank = 0; rank < t.x.r; rank += tensor_ranks)
    if (t.whole)
      Part::template run<true>(job, t, rank, shared);
    else
      Part::template run<false>(job, t, rank, shared);
}

__global__ void __launch_bounds__(threads, 2) tensor_project_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ float4 shared[TensorProject::room / vector];
  run_ranks<TensorProject>(job, tile_of_block<0>(job), shared);
}

__global__ void __launch_bounds__(threads, 2) tensor_back_project_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ float4 shared[TensorBackProject::room / vector];
  run_ranks<TensorBackProject>(job, tile_of_block<1>(job), shared);
}

__global__ void __launch_bounds__(threads, 2) tensor_approximate_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ uint4 shared[TensorApproximate::room / vector];
  run_ranks<TensorApproximate>(job, tile_of_block<2>(job), shared);
}

}  // namespace trireme::low_rank

// The CUDA twins: one launch for all matrices, a block for each tile. M goes from memory to registers or shared memory
// once; factors come from shared memory, each value used for 8 or more products. Sums over a whole row or column are
// split by tile, and a second small kernel adds the parts in the order of the tiles: no atomic.
#include "comm/cuda_launch.h"
#include "framework/gradients/low_rank_tensor.cuh"

namespace trireme {
namespace {

using namespace low_rank;

// P of `ranks` rows at a time, by 64 rows of M and 64 columns after another in shared memory. A thread has 8 rows and
// one or two ranks, a warp 8 times 4 of these; warps share out the ranks, then the columns.
template <int ranks>
struct Project {
  static constexpr int rows = low_rank_tile[0][0], columns = low_rank_tile[0][1], step = 64,
                       stride = step + vector;  // no two rows in the same banks
  static constexpr int each = ranks == 4 ? 1 : 2, rank_warps = ranks / (4 * each), splits = warps / rank_warps;
  static constexpr int row_stride = rows + 8;  // of the sums of splits
  static_assert(splits * ranks * row_stride <= (rows + ranks) * stride);

  // 64 columns of M, by the way kept as error, and of Q.
  template <bool whole>
  static __device__ void stage(const LowRankJob& job, const Tile& t, std::int64_t from, std::int64_t first_rank,
                               float* m, float* q) {
    const LowRankMatrix& x = t.x;
    constexpr int each_thread = rows * step / (threads * vector), rows_apart = threads * vector / step;
    const int row = static_cast<int>(threadIdx.x) / (step / vector);
    const int column = static_cast<int>(threadIdx.x) % (step / vector) * vector;
    const std::int64_t i = (t.row + row) * x.n + from + column, apart = rows_apart * x.n;
    const auto end = [&](int k) {  // of the row, in the terms of i
      const std::int64_t own = t.row + row + k * rows_apart;
      return own < x.m ? (own + 1) * x.n : 0;
    };
    float* error = job.error + x.error;
    const float* source = first_rank > 0 ? error : job.gradient + x.gradient;
    float4 v[each_thread];
#pragma unroll
    for (int k = 0; k < each_thread; ++k) v[k] = load_last<whole>(source, i + k * apart, end(k));
    if (first_rank == 0 && job.before)
#pragma unroll
      for (int k = 0; k < each_thread; ++k)
        v[k] = plus(load_last<whole>(job.before + x.error, i + k * apart, end(k)), v[k]);
    if (first_rank == 0)
#pragma unroll
      for (int k = 0; k < each_thread; ++k) store<whole>(error, i + k * apart, end(k), v[k]);
#pragma unroll
    for (int k = 0; k < each_thread; ++k)
      *reinterpret_cast<float4*>(m + (row + k * rows_apart) * stride + column) = v[k];
    for (int at = static_cast<int>(threadIdx.x); at < ranks * step / vector; at += threads) {
      const int rank = at / (step / vector);
      const bool there = first_rank + rank < x.r;
      *reinterpret_cast<float4*>(q + rank * stride + column) =
          there ? load<whole>(x.q + (first_rank + rank) * x.n, from + column, x.n) : make_float4(0, 0, 0, 0);
    }
  }

  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float* shared) {
    const LowRankMatrix& x = t.x;
    float *m = shared, *q = shared + rows * stride;
    const int split = warp_of_thread() / rank_warps, row = lane_of_thread() / 4;
    const int rank = warp_of_thread() % rank_warps * 4 * each + lane_of_thread() % 4;
    float sum[8][each] = {};
    for (std::int64_t from = t.column; from < t.column + columns && from < x.n; from += step) {
      if (t.whole)
        stage<true>(job, t, from, first_rank, m, q);
      else
        stage<false>(job, t, from, first_rank, m, q);
      __syncthreads();
#pragma unroll 1
      for (int k = split * vector; k < step; k += splits * vector) {
        float4 b[each];
#pragma unroll
        for (int j = 0; j < each; ++j) b[j] = *reinterpret_cast<const float4*>(q + (rank + 4 * j) * stride + k);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 a = *reinterpret_cast<const float4*>(m + (row + 8 * i) * stride + k);
#pragma unroll
          for (int j = 0; j < each; ++j) sum[i][j] = plus_dot(a, b[j], sum[i][j]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < each; ++j) shared[(split * ranks + rank + 4 * j) * row_stride + row + 8 * i] = sum[i][j];
    __syncthreads();
    float* out = job.partial + x.partial_p + t.split * x.r * x.m;
    for (int at = static_cast<int>(threadIdx.x); at < ranks * rows; at += threads) {
      const int k = at / rows, i = at % rows;
      float total = 0;
#pragma unroll
      for (int s = 0; s < splits; ++s) total += shared[(s * ranks + k) * row_stride + i];
      if (first_rank + k < x.r && t.row + i < x.m) out[(first_rank + k) * x.m + t.row + i] = total;
    }
    __syncthreads();
  }
};

template <int ranks>
__global__ void __launch_bounds__(threads, 3) project_kernel(const __grid_constant__ LowRankJob job) {
  using Part = Project<ranks>;
  __shared__ __align__(16) float shared[(Part::rows + ranks) * Part::stride];
  const Tile t = tile_of_block<0>(job);
  for (std::int64_t rank = 0; rank < t.x.r; rank += ranks) Part::run(job, t, rank, shared);
}

// Own Q of `ranks` rows at a time: M straight from memory, P turned in shared memory. A thread has 4 columns and
// all ranks; warps share out the columns, then the rows, and add up in pairs.
template <int ranks>
struct BackProject {
  static constexpr int rows = low_rank_tile[1][0], columns = low_rank_tile[1][1], width = 4;
  static constexpr int column_warps = columns / (lanes * width), row_warps = warps / column_warps;
  static constexpr int rows_of_warp = rows / row_warps, together = 8;
  static constexpr int stride = ranks + vector;
  static constexpr int sums = row_warps / 2 * ranks * columns;
  static constexpr int room = sums > rows* stride ? sums : rows* stride;

  static __device__ void stage(const Tile& t, std::int64_t first_rank, float* p) {
    for (int at = static_cast<int>(threadIdx.x); at < rows * ranks; at += threads) {
      const int row = at / 32 % (rows / 8) * 8 + at % 8, rank = at / (32 * (rows / 8)) * 4 + at / 8 % 4;
      const bool there = t.row + row < t.x.m && first_rank + rank < t.x.r;
      p[row * stride + rank] = there ? t.x.p[(first_rank + rank) * t.x.m + t.row + row] : 0.0f;
    }
  }

  template <bool whole>
  static __device__ void load_row(const float* row, std::int64_t i, std::int64_t end, float (&v)[width]) {
    const float4 a = load<whole>(row, i, end);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  }

  // Rows [begin, end) of the tile.
  template <bool whole>
  static __device__ void multiply(const LowRankJob& job, const Tile& t, int begin, int end, std::int64_t column,
                                  const float* p, float (&sum)[ranks][width]) {
    const float* m = job.error + t.x.error + t.row * t.x.n;
    for (int first = begin; first < end; first += together) {
      float v[together][width];
#pragma unroll
      for (int u = 0; u < together; ++u)
        load_row<whole>(m + (first + u) * t.x.n, column, first + u < end ? t.x.n : 0, v[u]);
#pragma unroll
      for (int u = 0; u < together; ++u)
#pragma unroll
        for (int r = 0; r < ranks; r += vector) {
          const float4 a = *reinterpret_cast<const float4*>(p + (first + u) * stride + r);
#pragma unroll
          for (int c = 0; c < width; ++c) {
            sum[r][c] = fmaf(a.x, v[u][c], sum[r][c]);
            sum[r + 1][c] = fmaf(a.y, v[u][c], sum[r + 1][c]);
            sum[r + 2][c] = fmaf(a.z, v[u][c], sum[r + 2][c]);
            sum[r + 3][c] = fmaf(a.w, v[u][c], sum[r + 3][c]);
          }
        }
    }
  }

  static __device__ void run(const LowRankJob& job, const Tile& t, std::int64_t first_rank, float* shared) {
    const LowRankMatrix& x = t.x;
    stage(t, first_rank, shared);
    __syncthreads();
    const int row_warp = warp_of_thread() / column_warps, begin = row_warp * rows_of_warp;
    const int own = (warp_of_thread() % column_warps * lanes + lane_of_thread()) * width;  // the first column
    const std::int64_t column = t.column + own, left = x.m - t.row;
    float sum[ranks][width] = {};
    const int end = left < begin + rows_of_warp ? static_cast<int>(left) : begin + rows_of_warp;
    if (t.whole)
      multiply<true>(job, t, begin, end, column, shared, sum);
    else
      multiply<false>(job, t, begin, end, column, shared, sum);
#pragma unroll
    for (int half = row_warps / 2; half > 0; half /= 2) {
      __syncthreads();
      if (row_warp >= half && row_warp < 2 * half)
#pragma unroll
        for (int r = 0; r < ranks; ++r)
#pragma unroll
          for (int c = 0; c < width; ++c) shared[((row_warp - half) * ranks + r) * columns + own + c] = sum[r][c];
      __syncthreads();
      if (row_warp < half)
#pragma unroll
        for (int r = 0; r < ranks; ++r)
#pragma unroll
          for (int c = 0; c < width; ++c) sum[r][c] += shared[(row_warp * ranks + r) * columns + own + c];
    }
    float* out = job.partial + x.partial_q + t.split * x.r * x.n;
    if (row_warp == 0)
#pragma unroll
      for (int r = 0; r < ranks; ++r)
#pragma unroll
        for (int c = 0; c < width; ++c)
          if (first_rank + r < x.r && column + c < x.n) out[(first_rank + r) * x.n + column + c] = sum[r][c];
    __syncthreads();
  }
};

template <int ranks>
__global__ void __launch_bounds__(threads, 2) back_project_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ __align__(16) float shared[BackProject<ranks>::room];
  const Tile t = tile_of_block<1>(job);
  for (std::int64_t rank = 0; rank < t.x.r; rank += ranks) BackProject<ranks>::run(job, t, rank, shared);
}

// The parts of P or own Q, in the order of the tiles. A row of blocks for each matrix.
template <bool is_p>
__global__ void __launch_bounds__(threads) sum_kernel(const __grid_constant__ LowRankJob job) {
  const LowRankMatrix& x = job.matrices[blockIdx.y];
  const std::int64_t length = x.r * (is_p ? x.m : x.n);
  constexpr int split = low_rank_tile[is_p ? 0 : 1][is_p ? 1 : 0];
  const std::int64_t parts = ((is_p ? x.n : x.m) + split - 1) / split;
  const float* from = job.partial + (is_p ? x.partial_p : x.partial_q);
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < length;
       i += static_cast<std::int64_t>(gridDim.x) * threads) {
    float sum = 0;
#pragma unroll 8
    for (std::int64_t k = 0; k < parts; ++k) sum += from[k * length + i];
    if (is_p) {
      x.p[i] = sum;
    } else {
      x.own_q[i] = sum;
      x.q[i] = sum;
    }
  }
}

// A thread has 8 rows and 4 columns, a warp 128 columns; the factors of a tile's columns serve twice 64 rows.
template <int ranks>
struct Approximate {
  static constexpr int rows = low_rank_tile[2][0], columns = low_rank_tile[2][1], rows_of_warp = 8;
  static constexpr int together = warps * rows_of_warp;

  struct Factors {
    float p[ranks][rows], q[ranks][columns], own_q[ranks][columns];
  };

  static __device__ void stage(const Tile& t, std::int64_t first_rank, Factors& f) {
    const LowRankMatrix& x = t.x;
    static_assert(rows == columns);
    for (int at = static_cast<int>(threadIdx.x); at < ranks * columns / vector; at += threads) {
      const int rank = at / (columns / vector), i = at % (columns / vector) * vector;
      const std::int64_t k = first_rank + rank;
      const bool there = k < x.r;
      const float4 zero = make_float4(0, 0, 0, 0);
      *reinterpret_cast<float4*>(&f.p[rank][i]) = there ? load(x.p + k * x.m, t.row + i, x.m) : zero;
      *reinterpret_cast<float4*>(&f.q[rank][i]) = there ? load(x.q + k * x.n, t.column + i, x.n) : zero;
      *reinterpret_cast<float4*>(&f.own_q[rank][i]) = there ? load(x.own_q + k * x.n, t.column + i, x.n) : zero;
    }
  }

  static __device__ void multiply(const Factors& f, int row, int column, float4 (&error)[rows_of_warp],
                                  float4 (&sum)[rows_of_warp]) {
#pragma unroll 2
    for (int k = 0; k < ranks; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&f.p[k][row]);
      const float4 b = *reinterpret_cast<const float4*>(&f.p[k][row + vector]);
      const float4 q = *reinterpret_cast<const float4*>(&f.q[k][column]);
      const float4 own = *reinterpret_cast<const float4*>(&f.own_q[k][column]);
      const float p[rows_of_warp] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < rows_of_warp; ++i) {
        sum[i] = plus_product(p[i], q, sum[i]);
        error[i] = plus_product(-p[i], own, error[i]);
      }
    }
  }

  template <bool whole>
  static __device__ void run(const LowRankJob& job, const Tile& t, Factors& f) {
    const LowRankMatrix& x = t.x;
    const int column = lane_of_thread() * vector;
    for (int pass = 0; pass < rows / together; ++pass) {
      const int row = pass * together + warp_of_thread() * rows_of_warp;
      float4 error[rows_of_warp], sum[rows_of_warp];
      float* m = job.error + x.error + (t.row + row) * x.n;
      float* out = job.gradient + x.gradient + (t.row + row) * x.n;
#pragma unroll
      for (int i = 0; i < rows_of_warp; ++i) {
        sum[i] = error[i] = make_float4(0, 0, 0, 0);
        if (job.before) error[i] = load<whole>(m + i * x.n, t.column + column, t.row + row + i < x.m ? x.n : 0);
      }
      for (std::int64_t rank = 0; rank < x.r; rank += ranks) {
        if (pass == 0 || x.r > ranks) {
          __syncthreads();
          stage(t, rank, f);
          __syncthreads();
        }
        multiply(f, row, column, error, sum);
      }
#pragma unroll
      for (int i = 0; i < rows_of_warp; ++i) {
        const std::int64_t end = t.row + row + i < x.m ? x.n : 0;
        if (job.before) store<whole>(m + i * x.n, t.column + column, end, error[i]);
        store<whole>(out + i * x.n, t.column + column, end, sum[i]);
      }
    }
  }
};

template <int ranks>
__global__ void __launch_bounds__(threads, 2) approximate_kernel(const __grid_constant__ LowRankJob job) {
  __shared__ __align__(16) typename Approximate<ranks>::Factors factors;
  const Tile t = tile_of_block<2>(job);
  if (t.whole)
    Approximate<ranks>::template run<true>(job, t, factors);
  else
    Approximate<ranks>::template run<false>(job, t, factors);
}

using KernelOfJob = void (*)(LowRankJob);

// The one of these for up to 4, 8, 16 and more ranks.
KernelOfJob pick(std::int64_t rank, KernelOfJob four, KernelOfJob eight, KernelOfJob sixteen, KernelOfJob more) {
  return rank <= 4 ? four : rank <= 8 ? eight : rank <= 16 ? sixteen : more;
}

void launch(KernelOfJob kernel, const LowRankJob& job, int which, Place place) {
  kernel<<<static_cast<unsigned>(job.tiles[which]), threads, 0, cuda_stream(place)>>>(job);
  check_launch("low rank");
}

// A row of blocks for each matrix: about what the card holds at once, since each waits for a few loads and ends.
dim3 sum_grid(const LowRankJob& job) {
  const auto count = static_cast<unsigned>(job.count);
  return {count < 128 ? 2048 / count : 16, count};
}

void project_on_cuda(const LowRankJob& job, Place place) {
  if (job.count == 0) return;
  launch(pick(job.rank, project_kernel<4>, project_kernel<8>, project_kernel<16>, tensor_project_kernel), job, 0,
         place);
  sum_kernel<true><<<sum_grid(job), threads, 0, cuda_stream(place)>>>(job);
  check_launch("low rank");
}

void back_project_on_cuda(const LowRankJob& job, Place place) {
  if (job.count == 0) return;
  launch(pick(job.rank, back_project_kernel<4>, back_project_kernel<8>, back_project_kernel<16>,
              tensor_back_project_kernel),
         job, 1, place);
  sum_kernel<false><<<sum_grid(job), threads, 0, cuda_stream(place)>>>(job);
  check_launch("low rank");
}

void approximate_on_cuda(const LowRankJob& job, Place place) {
  if (job.count == 0) return;
  launch(
      pick(job.rank, approximate_kernel<4>, approximate_kernel<8>, approximate_kernel<16>, tensor_approximate_kernel),
      job, 2, place);
}

const Kernel<LowRankJob>::Twin projection(project, project_on_cuda);
const Kernel<LowRankJob>::Twin back_projection(back_project, back_project_on_cuda);
const Kernel<LowRankJob>::Twin approximation(approximate, approximate_on_cuda);

}  // namespace
}  // namespace trireme

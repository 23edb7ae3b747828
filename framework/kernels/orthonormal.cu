// The CUDA twins. Orthonormal rows: blocks for parts of the columns multiply rows in f64, a block for each matrix turns
// the products into factors, and a thread for each column applies them.
#include "comm/cuda_launch.h"
#include "framework/kernels/orthonormal.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 512, lanes = 32, warps = threads / lanes;

// Sum over the block, equal in every thread.
__device__ double sum_of_block(double v) {
  __shared__ double of_warp[warps];
  for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % lanes == 0) of_warp[threadIdx.x / lanes] = v;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < warps; ++w) sum += of_warp[w];
  return sum;
}

__device__ double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += threads) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum_of_block(sum);
}

// Of one matrix: sums of each split, then factors, [count, count] each.
__device__ double* scratch_of(const OrthonormalJob& job, unsigned matrix) {
  return job.scratch + matrix * (orthonormal_splits + 1) * job.most_rows * job.most_rows;
}

constexpr int tile = 32, gram_threads = 256;

// Products of 32 rows with 32 rows over the columns [begin, end). A thread has 2 x 2 of them.
__device__ void multiply_rows(const RowMatrix& rows, std::int64_t first_a, std::int64_t first_b, std::int64_t begin,
                              std::int64_t end, double* out) {
  __shared__ double a[tile][tile + 1], b[tile][tile + 1];
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
  double sum[2][2] = {};
  for (std::int64_t from = begin; from < end; from += tile) {
    for (int at = static_cast<int>(threadIdx.x); at < tile * tile; at += gram_threads) {
      const int row = at / tile, column = at % tile;
      const bool there = from + column < end;
      a[row][column] =
          there && first_a + row < rows.count ? rows.data[(first_a + row) * rows.length + from + column] : 0.0f;
      b[row][column] =
          there && first_b + row < rows.count ? rows.data[(first_b + row) * rows.length + from + column] : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < tile; ++c)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) sum[i][j] = fma(a[y + 16 * i][c], b[x + 16 * j][c], sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const std::int64_t row = first_a + y + 16 * i, column = first_b + x + 16 * j;
      if (row < rows.count && column < rows.count)
        out[row * rows.count + column] = out[column * rows.count + row] = sum[i][j];
    }
}

__global__ void __launch_bounds__(gram_threads) gram_kernel(OrthonormalJob job) {
  const RowMatrix rows = job.matrices[blockIdx.y];
  const std::int64_t each = (rows.length + orthonormal_splits * tile - 1) / (orthonormal_splits * tile) * tile;
  const std::int64_t begin = blockIdx.x * each, end = begin + each < rows.length ? begin + each : rows.length;
  double* out = scratch_of(job, blockIdx.y) + blockIdx.x * rows.count * rows.count;
  for (std::int64_t a = 0; a < rows.count; a += tile)
    for (std::int64_t b = 0; b <= a; b += tile) multiply_rows(rows, a, b, begin, end, out);
}

constexpr int factor_threads = 1024, most_shared = 64;

// As `eliminate` of the host; in shared memory where it fits.
__global__ void __launch_bounds__(factor_threads) factor_kernel(OrthonormalJob job) {
  __shared__ double shared[most_shared * most_shared], shared_factor[most_shared];
  const std::int64_t r = job.matrices[blockIdx.x].count, all = r * r, t = threadIdx.x;
  double* sums = scratch_of(job, blockIdx.x);
  double* out = sums + orthonormal_splits * all;
  double* a = r <= most_shared ? shared : out;
  double* factor = r <= most_shared ? shared_factor : sums + all;  // of no more use there
  for (std::int64_t e = t; e < all; e += factor_threads) {
    double sum = 0;
#pragma unroll
    for (int s = 0; s < orthonormal_splits; ++s) sum += sums[s * all + e];
    a[e] = sum;
    sums[e] = sum;
  }
  __syncthreads();
  // A warp has a row, so that no index is divided; the threads that have a factor, and no others, divide for it.
  const std::int64_t lane = t % lanes, warp = t / lanes;
  for (std::int64_t k = 0; k < r; ++k) {
    for (std::int64_t i = k + 1 + t; i < r; i += factor_threads) {
      const double left = a[k * r + k];
      factor[i] = a[i * r + k] * (left <= 1e-12 * sums[k * r + k] ? 0 : 1 / left);
    }
    __syncthreads();
    for (std::int64_t i = k + 1 + warp; i < r; i += factor_threads / lanes)
      for (std::int64_t j = lane; j < r; j += lanes)
        a[i * r + j] = j == k ? -factor[i] : a[i * r + j] - factor[i] * a[k * r + j];
    __syncthreads();
  }
  // The diagonal is read by a whole row: `out` and `a` may be one.
  for (std::int64_t k = t; k < r; k += factor_threads) {
    const double left = a[k * r + k];
    factor[k] = left <= 1e-12 * sums[k * r + k] ? 0 : 1 / sqrt(left);
  }
  __syncthreads();
  for (std::int64_t k = warp; k < r; k += factor_threads / lanes)
    for (std::int64_t j = lane; j < r; j += lanes) out[k * r + j] = j == k ? factor[k] : a[k * r + j] * factor[k];
}

constexpr int apply_threads = 128;

// As below for few rows: the column in registers, so that it is read once.
constexpr int few = 32;

__device__ void apply_to_few(const RowMatrix& rows, const double* factors, std::int64_t i) {
  const std::int64_t r = rows.count, n = rows.length;
  double v[few];
#pragma unroll
  for (int j = 0; j < few; ++j) v[j] = j < r ? rows.data[j * n + i] : 0.0f;
#pragma unroll
  for (int k = 0; k < few; ++k)
    if (k < r) {
      double sum = 0;
#pragma unroll
      for (int j = 0; j < few; ++j)
        if (j <= k) sum = fma(factors[k * r + j], v[j], sum);
      rows.data[k * n + i] = static_cast<float>(sum);
    }
}

__global__ void __launch_bounds__(apply_threads) apply_kernel(OrthonormalJob job) {
  __shared__ double shared[most_shared * most_shared];
  const RowMatrix rows = job.matrices[blockIdx.y];
  const std::int64_t r = rows.count, n = rows.length;
  const double* factors = scratch_of(job, blockIdx.y) + orthonormal_splits * r * r;
  if (r <= most_shared) {
    for (std::int64_t e = threadIdx.x; e < r * r; e += apply_threads) shared[e] = factors[e];
    __syncthreads();
    factors = shared;
  }
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * apply_threads + threadIdx.x; i < n;
       i += static_cast<std::int64_t>(gridDim.x) * apply_threads) {
    if (r <= few) {
      apply_to_few(rows, shared, i);
      continue;
    }
    for (std::int64_t k = r - 1; k >= 0; --k) {
      double sum = 0;
#pragma unroll 8
      for (std::int64_t j = 0; j <= k; ++j)
        sum = fma(factors[k * r + j], static_cast<double>(rows.data[j * n + i]), sum);
      rows.data[k * n + i] = static_cast<float>(sum);
    }
  }
}

__global__ void __launch_bounds__(threads) restart_kernel(RestartJob job) {
  const RowMatrix rows = job.matrices[blockIdx.x];
  for (std::int64_t r = blockIdx.y; r < rows.count; r += gridDim.y) {
    float* row = rows.data + r * rows.length;
    const float square = static_cast<float>(dot(row, row, rows.length));
    const bool finite = (__float_as_uint(square) & 0x7f800000u) != 0x7f800000u;
    if (!finite && threadIdx.x == 0) *job.lost = 1;
    if (square > 0 && finite) continue;
    for (std::int64_t i = threadIdx.x; i < rows.length; i += threads) row[i] = rows.start[r * rows.length + i];
  }
}

constexpr unsigned apply_blocks = 32, restart_blocks = 32;  // of a matrix

void orthonormalize_on_cuda(const OrthonormalJob& job, Place place) {
  if (job.count == 0) return;
  const cudaStream_t stream = cuda_stream(place);
  const auto count = static_cast<unsigned>(job.count);
  gram_kernel<<<dim3(orthonormal_splits, count), gram_threads, 0, stream>>>(job);
  factor_kernel<<<count, factor_threads, 0, stream>>>(job);
  apply_kernel<<<dim3(apply_blocks, count), apply_threads, 0, stream>>>(job);
  check_launch("orthonormalize");
}

void restart_on_cuda(const RestartJob& job, Place place) {
  if (job.count == 0) return;
  restart_kernel<<<dim3(static_cast<unsigned>(job.count), restart_blocks), threads, 0, cuda_stream(place)>>>(job);
  check_launch("restart_rows");
}

const Kernel<OrthonormalJob>::Twin orthonormal(orthonormalize, orthonormalize_on_cuda);
const Kernel<RestartJob>::Twin restart(restart_rows, restart_on_cuda);

}  // namespace
}  // namespace trireme::kernels

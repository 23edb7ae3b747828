#include "comm/cuda_launch.h"
#include "framework/kernels/window_means.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256;

__device__ float widened(float v) { return v; }
__device__ double widened(double v) { return v; }
__device__ float widened(std::uint16_t v) { return __uint_as_float(static_cast<unsigned>(v) << 16); }  // bf16

// The block's sum in thread 0, in a fixed order.
__device__ double sum_of_block(double v) {
  __shared__ double of_warp[threads / 32];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffffu, v, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < threads / 32; ++w) sum += of_warp[w];
  __syncthreads();
  return sum;
}

// Block (part, window): the lines (plane, row) part, part + parts, ... of one window; a line's pixels side by side on
// the threads.
template <class T>
__global__ void __launch_bounds__(threads) sum_parts(WindowMeansJob job) {
  const std::int64_t part = blockIdx.x, window = blockIdx.y;
  const std::int64_t row0 = job.row_start[window / job.column_starts],
                     column0 = job.column_start[window % job.column_starts];
  double sums[most_differences] = {};
  if (row0 >= 0 && column0 >= 0) {
    const std::int64_t lines = (job.planes * job.window_rows - part + parts_of_a_window - 1) / parts_of_a_window;
    for (std::int64_t i = threadIdx.x; i < lines * job.window_columns; i += threads) {
      const std::int64_t line = part + i / job.window_columns * parts_of_a_window;
      std::int64_t row = row0 + line % job.window_rows, column = column0 + i % job.window_columns;
      if (row >= job.rows) row -= job.rows;
      if (column >= job.columns) column -= job.columns;
      const std::int64_t at = (line / job.window_rows * job.rows + row) * job.columns + column;
#pragma unroll
      for (int d = 0; d < most_differences; ++d) {
        if (d >= job.differences) continue;
        const auto a = widened(static_cast<const T*>(job.a[d])[at]);
        sums[d] += job.b[d] ? fabs(double(a) - double(widened(static_cast<const T*>(job.b[d])[at]))) : fabs(double(a));
      }
    }
  }
  for (int d = 0; d < job.differences; ++d) {
    const double sum = sum_of_block(sums[d]);
    if (threadIdx.x == 0) job.partial[(window * parts_of_a_window + part) * job.differences + d] = sum;
  }
}

__global__ void add_parts(WindowMeansJob job) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= job.row_starts * job.column_starts * job.differences) return;
  const std::int64_t window = i / job.differences, d = i % job.differences;
  double sum = 0;
  for (std::int64_t p = 0; p < parts_of_a_window; ++p)
    sum += job.partial[(window * parts_of_a_window + p) * job.differences + d];
  job.means[i] = static_cast<float>(sum / static_cast<double>(job.planes * job.window_rows * job.window_columns));
}

void on_cuda(const WindowMeansJob& job, Place place) {
  const std::int64_t windows = job.row_starts * job.column_starts;
  const dim3 grid(static_cast<unsigned>(parts_of_a_window), static_cast<unsigned>(windows));
  const cudaStream_t stream = cuda_stream(place);
  if (job.dtype == DType::f64)
    sum_parts<double><<<grid, threads, 0, stream>>>(job);
  else if (job.dtype == DType::bf16)
    sum_parts<std::uint16_t><<<grid, threads, 0, stream>>>(job);
  else
    sum_parts<float><<<grid, threads, 0, stream>>>(job);
  add_parts<<<cuda_blocks(static_cast<std::size_t>(windows * job.differences), 64), 64, 0, stream>>>(job);
  check_launch("window_means");
}

const Kernel<WindowMeansJob>::Twin registered(window_means, on_cuda);

}  // namespace
}  // namespace trireme::kernels

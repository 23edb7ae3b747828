// The CUDA twins: a block for each matrix, whose threads share a row.
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

// A thread changes the elements that it alone reads again: no barrier but those of the sums.
__global__ void __launch_bounds__(threads) orthonormal_kernel(OrthonormalJob job) {
  const Rows rows = job.matrices[blockIdx.x];
  const std::int64_t n = rows.length;
  for (std::int64_t k = 0; k < rows.count; ++k) {
    float* row = rows.data + k * n;
    const double before = sqrt(dot(row, row, n));
    for (std::int64_t j = 0; j < k; ++j) {
      const float* other = rows.data + j * n;
      const double along = dot(row, other, n);
      for (std::int64_t i = threadIdx.x; i < n; i += threads)
        row[i] = static_cast<float>(row[i] - along * static_cast<double>(other[i]));
    }
    const double norm = sqrt(dot(row, row, n));
    const double scale = norm <= 1e-6 * before ? 0 : 1 / norm;
    for (std::int64_t i = threadIdx.x; i < n; i += threads) row[i] = static_cast<float>(row[i] * scale);
  }
}

__global__ void __launch_bounds__(threads) restart_kernel(RestartJob job) {
  const Rows rows = job.matrices[blockIdx.x];
  for (std::int64_t r = 0; r < rows.count; ++r) {
    float* row = rows.data + r * rows.length;
    const float square = static_cast<float>(dot(row, row, rows.length));
    const bool finite = (__float_as_uint(square) & 0x7f800000u) != 0x7f800000u;
    if (!finite && threadIdx.x == 0) *job.lost = 1;
    if (square > 0 && finite) continue;
    for (std::int64_t i = threadIdx.x; i < rows.length; i += threads) row[i] = rows.start[r * rows.length + i];
  }
}

void orthonormalize_on_cuda(const OrthonormalJob& job, Place place) {
  if (job.count == 0) return;
  orthonormal_kernel<<<static_cast<unsigned>(job.count), threads, 0, cuda_stream(place)>>>(job);
  check_launch("orthonormalize");
}

void restart_on_cuda(const RestartJob& job, Place place) {
  if (job.count == 0) return;
  restart_kernel<<<static_cast<unsigned>(job.count), threads, 0, cuda_stream(place)>>>(job);
  check_launch("restart_rows");
}

const Kernel<OrthonormalJob>::Twin orthonormal(orthonormalize, orthonormalize_on_cuda);
const Kernel<RestartJob>::Twin restart(restart_rows, restart_on_cuda);

}  // namespace
}  // namespace trireme::kernels

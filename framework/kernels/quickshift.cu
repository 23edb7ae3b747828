// The CUDA twin: a thread a pixel, the same functions as on the host. Neighbouring threads read neighbouring columns.
#include "comm/cuda_launch.h"
#include "framework/kernels/quickshift.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 128, scan_threads = 1024;

__device__ std::int64_t pixel_of_thread() { return static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; }

__global__ void __launch_bounds__(threads) density_kernel(QuickshiftJob job) {
  if (pixel_of_thread() < job.pixels()) quickshift_pixel::density(job, blockIdx.y, pixel_of_thread());
}

__global__ void __launch_bounds__(threads) parent_kernel(QuickshiftJob job) {
  if (pixel_of_thread() < job.pixels()) quickshift_pixel::parent(job, blockIdx.y, pixel_of_thread());
}

__global__ void __launch_bounds__(threads) root_kernel(QuickshiftJob job) {
  const std::int64_t p = pixel_of_thread(), first = blockIdx.y * job.pixels();
  if (p < job.pixels())
    job.labels[first + p] = quickshift_pixel::root(job.parent() + first, static_cast<std::int32_t>(p));
}

// A block an image: where a pixel is a root, how many roots stand before it, into `parent`.
__global__ void __launch_bounds__(scan_threads) count_kernel(QuickshiftJob job) {
  __shared__ std::int32_t sums[scan_threads];
  const std::int64_t n = job.pixels(), each = (n + scan_threads - 1) / scan_threads;
  const int t = static_cast<int>(threadIdx.x);
  std::int32_t* parent = job.parent() + blockIdx.x * n;
  const std::int64_t first = t * each, end = quickshift_pixel::smaller(n, first + each);
  std::int32_t own = 0;
  for (std::int64_t p = first; p < end; ++p) own += parent[p] == p;
  sums[t] = own;
  __syncthreads();
  for (int reach = 1; reach < scan_threads; reach *= 2) {
    const std::int32_t more = t >= reach ? sums[t - reach] : 0;
    __syncthreads();
    sums[t] += more;
    __syncthreads();
  }
  std::int32_t before = sums[t] - own;
  for (std::int64_t p = first; p < end; ++p) {
    const bool is_root = parent[p] == p;
    parent[p] = before;
    before += is_root;
  }
  if (t == scan_threads - 1) job.segments[blockIdx.x] = sums[t];
}

__global__ void __launch_bounds__(threads) label_kernel(QuickshiftJob job) {
  const std::int64_t p = pixel_of_thread(), first = blockIdx.y * job.pixels();
  if (p < job.pixels()) job.labels[first + p] = job.parent()[first + job.labels[first + p]];
}

void on_cuda(const QuickshiftJob& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  const dim3 grid(cuda_blocks(static_cast<std::size_t>(job.pixels()), threads), static_cast<unsigned>(job.batch));
  density_kernel<<<grid, threads, 0, stream>>>(job);
  parent_kernel<<<grid, threads, 0, stream>>>(job);
  root_kernel<<<grid, threads, 0, stream>>>(job);
  count_kernel<<<static_cast<unsigned>(job.batch), scan_threads, 0, stream>>>(job);
  label_kernel<<<grid, threads, 0, stream>>>(job);
  check_launch("quickshift");
}

const Kernel<QuickshiftJob>::Twin twin(quickshift, on_cuda);

}  // namespace
}  // namespace trireme::kernels

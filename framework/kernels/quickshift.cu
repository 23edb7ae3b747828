// The CUDA twin, the same functions as on the host. Rows of a pixel's window are shared by a column of a block's
// threads, and put together in their order by the first; otherwise a thread a pixel. Neighbouring threads read
// neighbouring columns.
#include "comm/cuda_launch.h"
#include "framework/kernels/quickshift.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 128, scan_threads = 1024, across = 32, down = 10;  // 19 rows of a window: two turns

__device__ std::int64_t pixel_of_thread() { return static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; }

// The rows of the window around `pixel`: [first, end).
struct Rows {
  std::int64_t first, end;
  __device__ Rows(const QuickshiftJob& job, std::int64_t pixel, std::int64_t reach)
      : first(quickshift_pixel::larger(0, pixel / job.columns - reach)),
        end(quickshift_pixel::smaller(job.rows - 1, pixel / job.columns + reach) + 1) {}
};

__global__ void __launch_bounds__(across* down) density_kernel(QuickshiftJob job) {
  extern __shared__ double sums[];  // [row of a window][across]
  const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * across + threadIdx.x;
  const bool there = pixel < job.pixels();
  const Rows rows(job, there ? pixel : 0, job.reach());
  for (std::int64_t r = rows.first + threadIdx.y; there && r < rows.end; r += down)
    sums[(r - rows.first) * across + threadIdx.x] = quickshift_pixel::density_of_row(job, blockIdx.y, pixel, r);
  __syncthreads();
  if (!there || threadIdx.y > 0) return;
  double sum = 0;
  for (std::int64_t r = 0; r < rows.end - rows.first; ++r) sum += sums[r * across + threadIdx.x];
  quickshift_pixel::set_density(job, blockIdx.y, pixel, sum);
}

__global__ void __launch_bounds__(across* down) parent_kernel(QuickshiftJob job) {
  extern __shared__ quickshift_pixel::Nearest found[];  // [row of a window][across]
  const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * across + threadIdx.x;
  const bool there = pixel < job.pixels();
  const Rows rows(job, there ? pixel : 0, job.link_reach());
  for (std::int64_t r = rows.first + threadIdx.y; there && r < rows.end; r += down)
    found[(r - rows.first) * across + threadIdx.x] = quickshift_pixel::nearest_of_row(job, blockIdx.y, pixel, r);
  __syncthreads();
  if (!there || threadIdx.y > 0) return;
  quickshift_pixel::Nearest nearest{0, -1};
  for (std::int64_t r = 0; r < rows.end - rows.first; ++r) {
    const quickshift_pixel::Nearest of_row = found[r * across + threadIdx.x];
    if (of_row.pixel >= 0) nearest.offer(of_row.pixel, of_row.d2);
  }
  quickshift_pixel::set_parent(job, blockIdx.y, pixel, nearest);
}

template <class Value>
void over_windows(void (*kernel)(QuickshiftJob), const QuickshiftJob& job, std::int64_t reach, cudaStream_t stream) {
  const auto rows = static_cast<std::size_t>(quickshift_pixel::smaller(2 * reach + 1, job.rows));
  const std::size_t shared = rows * across * sizeof(Value);
  if (!allow_shared_memory(reinterpret_cast<const void*>(kernel), shared, "quickshift"))
    throw UsageError("kernel_size", "the window around a pixel does not fit into a GPU's shared memory",
                     "a smaller kernel_size");
  const dim3 grid(cuda_blocks(static_cast<std::size_t>(job.pixels()), across), static_cast<unsigned>(job.batch));
  kernel<<<grid, dim3(across, down), shared, stream>>>(job);
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
  over_windows<double>(density_kernel, job, job.reach(), stream);
  over_windows<quickshift_pixel::Nearest>(parent_kernel, job, job.link_reach(), stream);
  root_kernel<<<grid, threads, 0, stream>>>(job);
  count_kernel<<<static_cast<unsigned>(job.batch), scan_threads, 0, stream>>>(job);
  label_kernel<<<grid, threads, 0, stream>>>(job);
  check_launch("quickshift");
}

const Kernel<QuickshiftJob>::Twin twin(quickshift, on_cuda);

}  // namespace
}  // namespace trireme::kernels

#include "comm/cuda_launch.h"
#include "framework/kernels/copy_if.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256;
constexpr unsigned most_blocks = 528;  // few: nearly always they have nothing to do

__global__ void __launch_bounds__(threads) copy_kernel(CopyIfJob job) {
  if (*job.flag == 0) return;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < job.count; i += step)
    job.to[i] = job.from ? job.from[i] : 0;
}

void on_cuda(const CopyIfJob& job, Place place) {
  if (job.count == 0) return;
  const unsigned wanted = cuda_blocks(static_cast<std::size_t>(job.count), threads);
  const unsigned blocks = wanted < most_blocks ? wanted : most_blocks;
  copy_kernel<<<blocks, threads, 0, cuda_stream(place)>>>(job);
  check_launch("copy_if");
}

const Kernel<CopyIfJob>::Twin registered(copy_if, on_cuda);

}  // namespace
}  // namespace trireme::kernels

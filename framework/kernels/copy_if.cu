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

__global__ void __launch_bounds__(threads) rescale_kernel(RescaleJob job) {
  const float factor = *job.factor;
  if (factor == 1) return;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < job.count; i += step)
    job.at[i] *= factor;
}

unsigned blocks_of(std::int64_t count) {
  const unsigned wanted = cuda_blocks(static_cast<std::size_t>(count), threads);
  return wanted < most_blocks ? wanted : most_blocks;
}

void on_cuda(const CopyIfJob& job, Place place) {
  if (job.count == 0) return;
  copy_kernel<<<blocks_of(job.count), threads, 0, cuda_stream(place)>>>(job);
  check_launch("copy_if");
}

void rescale_on_cuda(const RescaleJob& job, Place place) {
  if (job.count == 0) return;
  rescale_kernel<<<blocks_of(job.count), threads, 0, cuda_stream(place)>>>(job);
  check_launch("rescale");
}

const Kernel<CopyIfJob>::Twin registered(copy_if, on_cuda);
const Kernel<RescaleJob>::Twin rescale_registered(rescale, rescale_on_cuda);

}  // namespace
}  // namespace trireme::kernels

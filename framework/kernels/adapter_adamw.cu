// Three launches for all jobs: squares of every chunk, one thread block a job that decides, and the update of every
// chunk.
#include "comm/cuda_launch.h"
#include "framework/kernels/adapter_adamw.h"

#include <cuda_bf16.h>

namespace trireme::kernels {
namespace {

constexpr int threads = 256;

// Of all threads, in an order that never changes; for thread 0.
__device__ double block_sum(double mine) {
  __shared__ double sums[threads];
  sums[threadIdx.x] = mine;
  for (int reach = threads / 2; reach > 0; reach /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < reach) sums[threadIdx.x] += sums[threadIdx.x + reach];
  }
  return sums[0];
}

// Blocks: x chunks, y jobs.
__global__ void __launch_bounds__(threads) squares_kernel(const __grid_constant__ AdapterAdamW job) {
  const AdapterValues t = job.jobs[blockIdx.y];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * adapter_chunk;
  const std::int64_t end = min(begin + adapter_chunk, t.count);
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) sum += static_cast<double>(t.grad[i]) * t.grad[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) job.partial[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(threads)
    decide_kernel(const __grid_constant__ AdapterAdamW job, std::int64_t chunks) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < chunks; i += threads) sum += job.partial[blockIdx.x * chunks + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) adapter_decide(job, job.jobs[blockIdx.x].slot, sum);
}

__global__ void __launch_bounds__(threads) update_kernel(const __grid_constant__ AdapterAdamW job) {
  const AdapterValues t = job.jobs[blockIdx.y];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * adapter_chunk;
  const std::int64_t end = min(begin + adapter_chunk, t.count);
  if (begin >= end) return;
  __shared__ AdamWStep shared;
  const bool go = job.factor[t.slot] != 0;
  if (threadIdx.x == 0 && go) shared = adapter_step(job, t.slot);
  __syncthreads();
  const AdamWStep s = shared;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) {
    if (go) {
      float value = t.value[i], first = t.first[i], second = t.second[i];
      adamw_element(s, t.grad[i], value, first, second);
      t.value[i] = value;
      t.first[i] = first;
      t.second[i] = second;
      if (t.working) static_cast<__nv_bfloat16*>(t.working)[i] = __float2bfloat16_rn(value);
    }
    t.grad[i] = 0;
  }
}

void on_cuda(const AdapterAdamW& job, Place place) {
  if (job.count == 0 || job.longest == 0) return;
  const dim3 grid(cuda_blocks(static_cast<std::size_t>(job.longest), adapter_chunk), static_cast<unsigned>(job.count));
  squares_kernel<<<grid, threads, 0, cuda_stream(place)>>>(job);
  decide_kernel<<<grid.y, threads, 0, cuda_stream(place)>>>(job, grid.x);
  update_kernel<<<grid, threads, 0, cuda_stream(place)>>>(job);
  check_launch("adapter_adamw");
}

const Kernel<AdapterAdamW>::Twin registered(adapter_adamw, on_cuda);

}  // namespace
}  // namespace trireme::kernels

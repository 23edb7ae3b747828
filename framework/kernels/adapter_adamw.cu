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

// 16 bytes at once: a job's arrays are so aligned, and ranks are padded to a multiple of 8.
__device__ bool in_quads(const AdapterValues& t) {
  return t.count % 4 == 0 && aligned(t.value, 16) && aligned(t.grad, 16) && aligned(t.first, 16) &&
         aligned(t.second, 16) && aligned(t.working, 8);
}

// Blocks: x chunks, y jobs.
__global__ void __launch_bounds__(threads) squares_kernel(const __grid_constant__ AdapterAdamW job) {
  const AdapterValues t = job.jobs[blockIdx.y];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * adapter_chunk;
  const std::int64_t end = min(begin + adapter_chunk, t.count);
  double sum = 0;
  if (in_quads(t)) {
#pragma unroll 4
    for (std::int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * threads) {
      const float4 g = *reinterpret_cast<const float4*>(t.grad + i);
      sum += static_cast<double>(g.x) * g.x + static_cast<double>(g.y) * g.y;
      sum += static_cast<double>(g.z) * g.z + static_cast<double>(g.w) * g.w;
    }
  } else {
    for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) sum += static_cast<double>(t.grad[i]) * t.grad[i];
  }
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

__device__ void update_quad(const AdapterValues& t, const AdamWStep& s, std::int64_t i) {
  const auto at = [&](float* p) -> float4& { return *reinterpret_cast<float4*>(p + i); };
  const float4 grad = *reinterpret_cast<const float4*>(t.grad + i);
  float4 value = at(t.value), first = at(t.first), second = at(t.second);
  adamw_element(s, grad.x, value.x, first.x, second.x);
  adamw_element(s, grad.y, value.y, first.y, second.y);
  adamw_element(s, grad.z, value.z, first.z, second.z);
  adamw_element(s, grad.w, value.w, first.w, second.w);
  at(t.value) = value;
  at(t.first) = first;
  at(t.second) = second;
  if (t.working) {
    __nv_bfloat162 four[2] = {__floats2bfloat162_rn(value.x, value.y), __floats2bfloat162_rn(value.z, value.w)};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(t.working) + i) = *reinterpret_cast<const uint2*>(four);
  }
}

__global__ void __launch_bounds__(threads) update_kernel(const __grid_constant__ AdapterAdamW job) {
  const AdapterValues t = job.jobs[blockIdx.y];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * adapter_chunk;
  const std::int64_t end = min(begin + adapter_chunk, t.count);
  if (begin >= end || job.factor[t.slot] == 0) return;
  __shared__ AdamWStep shared;
  if (threadIdx.x == 0) shared = adapter_step(job, t.slot);
  __syncthreads();
  const AdamWStep s = shared;
  if (in_quads(t)) {
    for (std::int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * threads) update_quad(t, s, i);
    return;
  }
  for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) {
    float value = t.value[i], first = t.first[i], second = t.second[i];
    adamw_element(s, t.grad[i], value, first, second);
    t.value[i] = value;
    t.first[i] = first;
    t.second[i] = second;
    if (t.working) static_cast<__nv_bfloat16*>(t.working)[i] = __float2bfloat16_rn(value);
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

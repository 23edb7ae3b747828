// Value by value. Rounds where the host rounds: compiled with -fmad=false.
#include "comm/cuda_launch.h"
#include "compression/codecs/bounded_flat.h"
#include "compression/stages/format.h"

namespace trireme {
namespace {

constexpr unsigned threads = 256;

__device__ std::size_t own_value() { return static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x; }

__global__ void __launch_bounds__(threads) compensate_kernel(CompensateJob job) {
  const std::size_t i = own_value();
  if (i < job.count) job.sum[i] = job.in[i] + job.before[i];
}

__global__ void __launch_bounds__(threads) loss_kernel(LossJob job) {
  __shared__ unsigned long long code_at;
  if (threadIdx.x == 0) code_at = 0;
  __syncthreads();
  unsigned long long before = 0;
  for (std::size_t k = threadIdx.x; k < job.number; k += threads) before += job.sizes[k];
  if (before > 0) atomicAdd(&code_at, before);
  __syncthreads();
  const std::size_t i = own_value();
  if (i >= job.count) return;
  const bool as_it_is = job.codes[code_at + offsetof(coding::ChunkHeader, encoder)] == coding::raw_values;
  const float lost = as_it_is ? 0 : job.sum[i] - job.error[i];
  job.error[i] = lost - lost == 0 ? lost : 0;
}

__global__ void __launch_bounds__(threads) sum_kernel(SumCodesJob job) {
  const std::size_t i = own_value();
  if (i >= job.count) return;
  float sum = job.values[i];
  for (std::size_t k = 1; k < job.codes; ++k) sum += job.values[k * job.count + i];
  job.out[i] = *job.status == 0 ? sum : __int_as_float(0x7fc00000);
}

void compensate(const CompensateJob& job, Place place) {
  compensate_kernel<<<cuda_blocks(job.count, threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("bounded codec, sum");
}
void keep_loss(const LossJob& job, Place place) {
  loss_kernel<<<cuda_blocks(job.count, threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("bounded codec, loss");
}
void sum_codes(const SumCodesJob& job, Place place) {
  sum_kernel<<<cuda_blocks(job.count, threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("bounded codec, sum of codes");
}

const Kernel<CompensateJob>::Twin compensated(compensate_flat, compensate);
const Kernel<LossJob>::Twin kept(keep_flat_loss, keep_loss);
const Kernel<SumCodesJob>::Twin summed(sum_flat_codes, sum_codes);

}  // namespace
}  // namespace trireme

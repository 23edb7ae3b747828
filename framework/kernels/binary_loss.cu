// One block: a logit a sample is little, and its sum needs no second launch.
#include "comm/cuda_launch.h"
#include "framework/kernels/binary_loss.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 1024;

template <class T>
__global__ void __launch_bounds__(threads) binary_loss_kernel(BinaryLossJob<T> job) {
  __shared__ double sums[threads];
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < job.n; i += threads) {
    T gradient;
    sum += static_cast<double>(binary_loss_of(job.logits[i], job.labels[i], gradient));
    job.gradient[i] = static_cast<T>(static_cast<double>(gradient) / job.divisor);
  }
  sums[threadIdx.x] = sum;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *job.loss = static_cast<T>(sums[0] / job.divisor);
}

template <class T>
void on_cuda(const BinaryLossJob<T>& job, Place place) {
  binary_loss_kernel<T><<<1, threads, 0, cuda_stream(place)>>>(job);
  check_launch("binary loss");
}

const Kernel<BinaryLossJob<float>>::Twin f32(binary_loss_f32, on_cuda<float>);
const Kernel<BinaryLossJob<double>>::Twin f64(binary_loss_f64, on_cuda<double>);

}  // namespace
}  // namespace trireme::kernels

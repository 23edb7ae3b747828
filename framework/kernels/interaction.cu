// A block for each sample: its vectors lie in shared memory, each thread makes products of two of them. One row of
// padding in each vector, so that threads of a warp read from different banks.
#include "comm/cuda_launch.h"
#include "framework/kernels/interaction.h"

#include <cmath>

namespace trireme::kernels {
namespace {

constexpr unsigned threads = 128;

__device__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ double fused(double a, double b, double c) { return fma(a, b, c); }

// z [f, d + 1]
template <class T>
__device__ void load(const Vectors<const T>& in, std::int64_t sample, T* z) {
  const int d = static_cast<int>(in.d), all = static_cast<int>(in.tables + 1) * d;
  for (int e = threadIdx.x; e < all; e += threads) {
    const int i = e / d, k = e % d;
    const T* from = i == 0 ? in.x + sample * d : in.rows + (in.place[i - 1] * in.n + sample) * d;
    z[i * (d + 1) + k] = from[k];
  }
}

// Row and column of entry e of a strictly lower triangle.
__device__ void entry(int e, int& i, int& j) {
  i = static_cast<int>((1 + sqrtf(1 + 8 * static_cast<float>(e))) / 2);
  while (i * (i - 1) / 2 > e) --i;
  while ((i + 1) * i / 2 <= e) ++i;
  j = e - i * (i - 1) / 2;
}

template <class T>
__global__ void __launch_bounds__(threads) forward_kernel(InteractJob<T> job) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* z = reinterpret_cast<T*>(memory);
  const std::int64_t sample = blockIdx.x;
  const int d = static_cast<int>(job.in.d), f = static_cast<int>(job.in.tables + 1);
  load(job.in, sample, z);
  __syncthreads();
  T* out = job.out + sample * width_of(job.in);
  for (int k = threadIdx.x; k < d; k += threads) out[k] = z[k];
  for (int e = threadIdx.x; e < f * (f - 1) / 2; e += threads) {
    int i, j;
    entry(e, i, j);
    T sum = 0;
#pragma unroll 4
    for (int k = 0; k < d; ++k) sum = fused(z[i * (d + 1) + k], z[j * (d + 1) + k], sum);
    out[d + e] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(InteractBackwardJob<T> job) {
  extern __shared__ __align__(16) unsigned char memory[];
  const std::int64_t sample = blockIdx.x;
  const int d = static_cast<int>(job.in.d), f = static_cast<int>(job.in.tables + 1);
  T *z = reinterpret_cast<T*>(memory), *s = z + f * (d + 1);  // s [f, f]: the gradient of T T^T, made symmetric
  const T* grad = job.grad + sample * width_of(job.in);
  load(job.in, sample, z);
  for (int e = threadIdx.x; e < f * (f - 1) / 2; e += threads) {
    int i, j;
    entry(e, i, j);
    s[i * f + j] = s[j * f + i] = grad[d + e];
  }
  for (int i = threadIdx.x; i < f; i += threads) s[i * f + i] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < f * d; e += threads) {
    const int i = e / d, k = e % d;
    T sum = 0;
#pragma unroll 4
    for (int j = 0; j < f; ++j) sum = fused(s[i * f + j], z[j * (d + 1) + k], sum);
    if (i == 0)
      job.to.x[sample * d + k] = sum + grad[k];
    else
      job.to.rows[(job.to.place[i - 1] * job.to.n + sample) * d + k] = sum;
  }
}

// Room for z, and for s where `square`.
template <class T, class F>
std::size_t shared_of(const Vectors<const T>& in, bool square, F* kernel) {
  const auto f = static_cast<std::size_t>(in.tables + 1), d = static_cast<std::size_t>(in.d);
  const std::size_t bytes = (f * (d + 1) + (square ? f * f : 0)) * sizeof(T);
  if (!allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes, "interaction"))
    throw UsageError("model.dim", "and the number of tables are more than the interaction of a GPU holds",
                     "use a smaller model.dim, or device=cpu");
  return bytes;
}

template <class T>
void on_cuda(const InteractJob<T>& job, Place place) {
  if (job.in.n == 0) return;
  const std::size_t shared = shared_of<T>(job.in, false, forward_kernel<T>);
  forward_kernel<T><<<static_cast<unsigned>(job.in.n), threads, shared, cuda_stream(place)>>>(job);
  check_launch("interaction");
}

template <class T>
void backward_on_cuda(const InteractBackwardJob<T>& job, Place place) {
  if (job.in.n == 0) return;
  const std::size_t shared = shared_of<T>(job.in, true, backward_kernel<T>);
  backward_kernel<T><<<static_cast<unsigned>(job.in.n), threads, shared, cuda_stream(place)>>>(job);
  check_launch("interaction");
}

const Kernel<InteractJob<float>>::Twin f32(interact_f32, on_cuda<float>);
const Kernel<InteractJob<double>>::Twin f64(interact_f64, on_cuda<double>);
const Kernel<InteractBackwardJob<float>>::Twin backward_f32(interact_backward_f32, backward_on_cuda<float>);
const Kernel<InteractBackwardJob<double>>::Twin backward_f64(interact_backward_f64, backward_on_cuda<double>);

}  // namespace
}  // namespace trireme::kernels

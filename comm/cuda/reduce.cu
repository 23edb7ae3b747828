#include "comm/cuda/reduce.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace trireme::cuda {
namespace {

struct Pointers {
  const void* in[most_inputs];
  void* out[most_inputs];
  int ins, outs;
};

// How an element is stored and what it is computed in.
template <class T>
struct Plain {
  using Stored = T;
  using Wide = T;
  static __device__ T widen(T v) { return v; }
  static __device__ T narrow(T v) { return v; }
};
struct Half {
  using Stored = __half;
  using Wide = float;
  static __device__ float widen(__half v) { return __half2float(v); }
  static __device__ __half narrow(float v) { return __float2half_rn(v); }
};
struct Brain {
  using Stored = __nv_bfloat16;
  using Wide = float;
  static __device__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
  static __device__ __nv_bfloat16 narrow(float v) { return __float2bfloat16_rn(v); }
};

template <Op op, class T>
__device__ T apply(T a, T b) {
  if (op == Op::min) return (b < a) | (b != b) ? b : a;
  if (op == Op::max) return (b > a) | (b != b) ? b : a;
  return static_cast<T>(a + b);
}
// Sums of signed integers wrap.
template <>
__device__ long long apply<Op::sum, long long>(long long a, long long b) {
  return static_cast<long long>(static_cast<unsigned long long>(a) + static_cast<unsigned long long>(b));
}
template <>
__device__ int apply<Op::sum, int>(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}

// V: 16 bytes at a time where all pointers allow it, else one element.
template <class E, Op op, class V>
__global__ void reduce_kernel(Pointers p, std::size_t count) {
  using T = typename E::Stored;
  constexpr int per = sizeof(V) / sizeof(T);
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    typename E::Wide sum[per];
    V packed = static_cast<const V*>(p.in[0])[i];
#pragma unroll
    for (int k = 0; k < per; ++k) sum[k] = E::widen(reinterpret_cast<const T*>(&packed)[k]);
    for (int r = 1; r < p.ins; ++r) {
      packed = static_cast<const V*>(p.in[r])[i];
#pragma unroll
      for (int k = 0; k < per; ++k)
        sum[k] = apply<op, typename E::Wide>(sum[k], E::widen(reinterpret_cast<const T*>(&packed)[k]));
    }
#pragma unroll
    for (int k = 0; k < per; ++k) reinterpret_cast<T*>(&packed)[k] = E::narrow(sum[k]);
    for (int r = 0; r < p.outs; ++r) static_cast<V*>(p.out[r])[i] = packed;
  }
}

template <class E, Op op, class V>
void launch(const Pointers& p, std::size_t count, cudaStream_t stream) {
  constexpr unsigned threads = 256, most_blocks = 1024;
  const std::size_t blocks = (count + threads - 1) / threads;
  reduce_kernel<E, op, V>
      <<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), threads, 0, stream>>>(p, count);
  check(cudaGetLastError(), "reduce kernel");
}

template <class E, Op op>
void run(Pointers p, std::size_t count, cudaStream_t stream) {
  using T = typename E::Stored;
  constexpr std::size_t per = sizeof(uint4) / sizeof(T);
  bool aligned = true;
  for (int r = 0; r < p.ins; ++r) aligned &= reinterpret_cast<std::uintptr_t>(p.in[r]) % sizeof(uint4) == 0;
  for (int r = 0; r < p.outs; ++r) aligned &= reinterpret_cast<std::uintptr_t>(p.out[r]) % sizeof(uint4) == 0;
  const std::size_t packs = aligned ? count / per : 0, done = packs * per;
  if (packs > 0) launch<E, op, uint4>(p, packs, stream);
  if (done == count) return;
  for (int r = 0; r < p.ins; ++r) p.in[r] = static_cast<const T*>(p.in[r]) + done;
  for (int r = 0; r < p.outs; ++r) p.out[r] = static_cast<T*>(p.out[r]) + done;
  launch<E, op, T>(p, count - done, stream);
}

template <class E>
void run(Op op, const Pointers& p, std::size_t count, cudaStream_t stream) {
  if (op == Op::sum) run<E, Op::sum>(p, count, stream);
  if (op == Op::min) run<E, Op::min>(p, count, stream);
  if (op == Op::max) run<E, Op::max>(p, count, stream);
}

}  // namespace

void reduce(Op op, DType dtype, void* const* outs, std::size_t n_outs, const void* const* ins, std::size_t n_ins,
            std::size_t count, cudaStream_t stream) {
  if (count == 0) return;
  Pointers p;
  p.ins = static_cast<int>(n_ins);
  p.outs = static_cast<int>(n_outs);
  for (std::size_t r = 0; r < n_ins; ++r) p.in[r] = ins[r];
  for (std::size_t r = 0; r < n_outs; ++r) p.out[r] = outs[r];
  switch (dtype) {
    case DType::f64:
      return run<Plain<double>>(op, p, count, stream);
    case DType::f32:
      return run<Plain<float>>(op, p, count, stream);
    case DType::f16:
      return run<Half>(op, p, count, stream);
    case DType::bf16:
      return run<Brain>(op, p, count, stream);
    case DType::i64:
      return run<Plain<long long>>(op, p, count, stream);
    case DType::i32:
      return run<Plain<int>>(op, p, count, stream);
    case DType::u8:
      return run<Plain<unsigned char>>(op, p, count, stream);
  }
}

}  // namespace trireme::cuda

// A block for each token. Rows of adaLN lie in shared memory as f32 between the passes; a warp takes the heads of a
// token one after the other with its pairs' cosines and sines in registers.
#include "comm/cuda_launch.h"
#include "framework/kernels/dit_pointwise.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, warps = threads / 32;

// 16 bytes at once.
template <class T>
struct alignas(16) Packed {
  static constexpr int n = 16 / sizeof(T);
  T v[n];
};

__device__ float sum_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, step);
  return x;
}

__device__ float sum_of_block(float x, float* room) {
  x = sum_of_warp(x);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  float all = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) all += room[w];
  __syncthreads();
  return all;
}

// n values of a row at a time: 16 bytes, or 1 where rows are not so aligned.
template <class T, int n>
struct Piece {
  T v[n];
  __device__ static Piece load(const T* p) {
    Piece x;
    if constexpr (n == Packed<T>::n) {
      const auto all = *reinterpret_cast<const Packed<T>*>(p);
#pragma unroll
      for (int i = 0; i < n; ++i) x.v[i] = all.v[i];
    } else {
      x.v[0] = *p;
    }
    return x;
  }
  __device__ void store(T* p) const {
    if constexpr (n == Packed<T>::n) {
      Packed<T> all;
#pragma unroll
      for (int i = 0; i < n; ++i) all.v[i] = v[i];
      *reinterpret_cast<Packed<T>*>(p) = all;
    } else {
      *p = v[0];
    }
  }
};

template <class T, int n>
__global__ void __launch_bounds__(threads) modulate_kernel(ModulateJob<T> job) {
  extern __shared__ float values[];
  __shared__ float room[warps];
  const std::int64_t row = blockIdx.x, b = row / job.tokens;
  // Value i of piece p lies at i * pieces + p: neighbours in a warp use different banks.
  const int width = static_cast<int>(job.width), pieces = width / n;
  const T* x = job.x + row * width;
  float sum = 0;
  for (int c = threadIdx.x * n; c < width; c += threads * n) {
    auto piece = Piece<T, n>::load(x + c);
    if (job.add) {
      const auto add = Piece<T, n>::load(job.add + row * width + c),
                 gate = Piece<T, n>::load(job.gate + b * job.stride + c);
#pragma unroll
      for (int i = 0; i < n; ++i) narrowed(widened(piece.v[i]) + widened(gate.v[i]) * widened(add.v[i]), piece.v[i]);
      piece.store(job.sum + row * width + c);
    }
#pragma unroll
    for (int i = 0; i < n; ++i) sum += values[i * pieces + c / n] = widened(piece.v[i]);
  }
  if (!job.y) return;
  const float mean = sum_of_block(sum, room) / width;
  float square = 0;
  for (int c = threadIdx.x * n; c < width; c += threads * n)
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float v = values[i * pieces + c / n] - mean;
      square += v * v;
    }
  const float rstd = rsqrtf(sum_of_block(square, room) / width + job.eps);
  for (int c = threadIdx.x * n; c < width; c += threads * n) {
    const auto shift = Piece<T, n>::load(job.shift + b * job.stride + c),
               scale = Piece<T, n>::load(job.scale + b * job.stride + c);
    Piece<T, n> y;
#pragma unroll
    for (int i = 0; i < n; ++i)
      narrowed((values[i * pieces + c / n] - mean) * rstd * (1 + widened(scale.v[i])) + widened(shift.v[i]), y.v[i]);
    y.store(job.y + row * width + c);
  }
}

template <class T>
void modulate_cuda(const ModulateJob<T>& job, Place place) {
  const std::int64_t rows = job.batch * job.tokens;
  if (rows == 0) return;
  bool whole = job.width % Packed<T>::n == 0 && job.stride % Packed<T>::n == 0;
  const T* all[] = {job.x, job.add, job.gate, job.shift, job.scale, job.sum, job.y};
  for (const T* p : all) whole = whole && aligned(p, 16);
  auto* kernel = whole ? modulate_kernel<T, Packed<T>::n> : modulate_kernel<T, 1>;
  const std::size_t shared = static_cast<std::size_t>(job.width) * sizeof(float);
  if (!allow_shared_memory(reinterpret_cast<const void*>(kernel), shared, "modulate"))
    throw UsageError("model", "is wider than a GPU's shared memory", "use fewer heads");
  kernel<<<static_cast<unsigned>(rows), threads, shared, cuda_stream(place)>>>(job);
  check_launch("modulate");
}

constexpr int most_pairs = 4;  // of a lane: heads of up to 256 channels

template <class T>
__global__ void __launch_bounds__(threads) qk_kernel(QkJob<T> job) {
  const std::int64_t row = blockIdx.x, token = row % job.tokens;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pairs = static_cast<int>(job.head_dim) / 2, heads = static_cast<int>(job.heads);
  float cos[most_pairs], sin[most_pairs];
  if (job.cos) {
    const std::int64_t entry = row / job.tokens * job.table_stride + token * pairs;
#pragma unroll
    for (int j = 0; j < most_pairs; ++j)
      if (const int p = lane + 32 * j; p < pairs) {
        cos[j] = job.cos[entry + p];
        sin[j] = job.sin[entry + p];
      }
  }
  struct alignas(2 * sizeof(T)) Pair {
    T a, b;
  };
  const bool first = token < job.split;
  for (int h = warp; h < 2 * heads; h += warps) {
    const bool key = h >= heads;
    auto* x = reinterpret_cast<Pair*>(job.qkv + (row * 3 * heads + h) * job.head_dim);
    const T* of_q = first ? job.q_first : job.q_second;
    const T* of_k = first ? job.k_first : job.k_second;
    const auto* weight = reinterpret_cast<const Pair*>(key ? of_k : of_q);
    float a[most_pairs], b[most_pairs], square = 0;
#pragma unroll
    for (int j = 0; j < most_pairs; ++j)
      if (const int p = lane + 32 * j; p < pairs) {
        const Pair in = x[p];
        a[j] = widened(in.a);
        b[j] = widened(in.b);
        square += a[j] * a[j] + b[j] * b[j];
      }
    const float rstd = rsqrtf(sum_of_warp(square) / static_cast<float>(job.head_dim) + job.eps);
    const bool rotate = job.cos && (!key || job.rotate_k);
#pragma unroll
    for (int j = 0; j < most_pairs; ++j)
      if (const int p = lane + 32 * j; p < pairs) {
        const Pair w = weight[p];
        const float u = a[j] * rstd * widened(w.a), v = b[j] * rstd * widened(w.b);
        Pair out;
        narrowed(rotate ? u * cos[j] - v * sin[j] : u, out.a);
        narrowed(rotate ? v * cos[j] + u * sin[j] : v, out.b);
        x[p] = out;
      }
  }
}

template <class T>
void qk_cuda(const QkJob<T>& job, Place place) {
  const std::int64_t rows = job.batch * job.tokens;
  if (rows == 0) return;
  qk_kernel<T><<<static_cast<unsigned>(rows), threads, 0, cuda_stream(place)>>>(job);
  check_launch("norm_and_rotate");
}

const Kernel<ModulateJob<float>>::Twin modulate_32(modulate_f32, modulate_cuda<float>);
const Kernel<ModulateJob<BrainFloat>>::Twin modulate_16(modulate_bf16, modulate_cuda<BrainFloat>);
const Kernel<QkJob<float>>::Twin qk_32(norm_and_rotate_f32, qk_cuda<float>);
const Kernel<QkJob<BrainFloat>>::Twin qk_16(norm_and_rotate_bf16, qk_cuda<BrainFloat>);

}  // namespace
}  // namespace trireme::kernels

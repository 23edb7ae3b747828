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

// n values of a row at a time: pieces of 16 bytes, or single ones where rows are not so aligned.
template <class T, int n>
struct Piece {
  T v[n];
  __device__ static Piece load(const T* p) {
    constexpr int each = Packed<T>::n;
    Piece x;
    if constexpr (n % each == 0) {
#pragma unroll
      for (int k = 0; k < n / each; ++k) {
        const auto all = reinterpret_cast<const Packed<T>*>(p)[k];
#pragma unroll
        for (int i = 0; i < each; ++i) x.v[k * each + i] = all.v[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) x.v[i] = p[i];
    }
    return x;
  }
  __device__ void store(T* p) const {
    constexpr int each = Packed<T>::n;
    if constexpr (n % each == 0) {
#pragma unroll
      for (int k = 0; k < n / each; ++k) {
        Packed<T> all;
#pragma unroll
        for (int i = 0; i < each; ++i) all.v[i] = v[k * each + i];
        reinterpret_cast<Packed<T>*>(p)[k] = all;
      }
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) p[i] = v[i];
    }
  }
};

template <class T, class M, int n>
__global__ void __launch_bounds__(threads) modulate_kernel(ModulateJob<T, M> job) {
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
      const auto add = Piece<T, n>::load(job.add + row * width + c);
      Piece<M, n> gate;
      if (job.gate) gate = Piece<M, n>::load(job.gate + b * job.gate_stride + c);
#pragma unroll
      for (int i = 0; i < n; ++i)
        narrowed(widened(piece.v[i]) + (job.gate ? widened(gate.v[i]) : 1) * widened(add.v[i]), piece.v[i]);
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
    const auto shift = Piece<M, n>::load(job.shift + b * job.stride + c),
               scale = Piece<M, n>::load(job.scale + b * job.stride + c);
    Piece<T, n> y;
#pragma unroll
    for (int i = 0; i < n; ++i)
      narrowed((values[i * pieces + c / n] - mean) * rstd * (1 + widened(scale.v[i])) + widened(shift.v[i]), y.v[i]);
    y.store(job.y + row * width + c);
  }
}

template <class T, class M>
void modulate_cuda(const ModulateJob<T, M>& job, Place place) {
  const std::int64_t rows = job.batch * job.tokens;
  if (rows == 0) return;
  constexpr int n = Packed<T>::n;
  bool whole = job.width % n == 0 && job.stride % n == 0 && job.gate_stride % n == 0;
  const void* all[] = {job.x, job.add, job.gate, job.shift, job.scale, job.sum, job.y};
  for (const void* p : all) whole = whole && aligned(p, 16);
  auto* kernel = whole ? modulate_kernel<T, M, n> : modulate_kernel<T, M, 1>;
  const std::size_t shared = static_cast<std::size_t>(job.width) * sizeof(float);
  if (!allow_shared_memory(reinterpret_cast<const void*>(kernel), shared, "modulate"))
    throw UsageError("model", "is wider than a GPU's shared memory", "use fewer heads");
  kernel<<<static_cast<unsigned>(rows), threads, shared, cuda_stream(place)>>>(job);
  check_launch("modulate");
}

// A block a row and vector. The second reading finds the row in the cache.
template <class T, int n>
__global__ void __launch_bounds__(threads) norm_rows_kernel(RowNormJob<T> job) {
  __shared__ float room[warps];
  const std::int64_t row = blockIdx.x, token = row % job.tokens;
  const int k = blockIdx.y, dim = static_cast<int>(job.head_dim), width = static_cast<int>(job.heads) * dim;
  T* x = job.x + row * job.row_stride + k * width;
  const T* weights = k ? job.weight[1] : job.weight[0];
  float square = 0;
  for (int c = threadIdx.x * n; c < width; c += threads * n) {
    const auto piece = Piece<T, n>::load(x + c);
#pragma unroll
    for (int i = 0; i < n; ++i) square += widened(piece.v[i]) * widened(piece.v[i]);
  }
  const float rstd = rsqrtf(sum_of_block(square, room) / static_cast<float>(width) + job.eps);
  const bool rotate = job.cos && (k == 0 || job.rotate_second);
  const std::int64_t entry = row / job.tokens * job.table_stride + token * (dim / 2);
  for (int c = threadIdx.x * n; c < width; c += threads * n) {
    const auto in = Piece<T, n>::load(x + c), weight = Piece<T, n>::load(weights + c);
    Piece<T, n> out;
#pragma unroll
    for (int i = 0; i < n; i += 2) {
      const float a = widened(in.v[i]) * rstd * widened(weight.v[i]);
      const float b = widened(in.v[i + 1]) * rstd * widened(weight.v[i + 1]);
      const std::int64_t pair = entry + (c + i) % dim / 2;
      const float cos = rotate ? job.cos[pair] : 1, sin = rotate ? job.sin[pair] : 0;
      narrowed(a * cos - b * sin, out.v[i]);
      narrowed(b * cos + a * sin, out.v[i + 1]);
    }
    out.store(x + c);
  }
}

template <class T>
void norm_rows_cuda(const RowNormJob<T>& job, Place place) {
  const std::int64_t rows = job.batch * job.tokens;
  if (rows == 0) return;
  constexpr int n = Packed<T>::n;
  const bool whole = job.head_dim % n == 0 && job.row_stride % n == 0 && aligned(job.x, 16) &&
                     aligned(job.weight[0], 16) && aligned(job.weight[1], 16);
  auto* kernel = whole ? norm_rows_kernel<T, n> : norm_rows_kernel<T, 2>;
  kernel<<<dim3(static_cast<unsigned>(rows), job.weight[1] ? 2 : 1), threads, 0, cuda_stream(place)>>>(job);
  check_launch("norm_rows");
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

const Kernel<ModulateJob<float, float>>::Twin modulate_32(modulate_f32, modulate_cuda<float, float>);
const Kernel<ModulateJob<BrainFloat, BrainFloat>>::Twin modulate_16(modulate_bf16,
                                                                    modulate_cuda<BrainFloat, BrainFloat>);
const Kernel<ModulateJob<BrainFloat, float>>::Twin modulate_16_by_32(modulate_bf16_by_f32,
                                                                     modulate_cuda<BrainFloat, float>);
const Kernel<RowNormJob<float>>::Twin rows_32(norm_rows_f32, norm_rows_cuda<float>);
const Kernel<RowNormJob<BrainFloat>>::Twin rows_16(norm_rows_bf16, norm_rows_cuda<BrainFloat>);
const Kernel<QkJob<float>>::Twin qk_32(norm_and_rotate_f32, qk_cuda<float>);
const Kernel<QkJob<BrainFloat>>::Twin qk_16(norm_and_rotate_bf16, qk_cuda<BrainFloat>);

}  // namespace
}  // namespace trireme::kernels

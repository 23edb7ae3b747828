// Rows of a norm stay in registers between its two passes, by a warp where they are short, by a block else.
// Exponentials and quotients are the fast ones (2 ulp): with the others the arithmetic of SwiGLU would take as long as
// its memory.
#include "comm/cuda_launch.h"
#include "framework/kernels/lm_pointwise.h"

#include <algorithm>

#include <cuda_bf16.h>

namespace trireme::kernels {
namespace {

constexpr int threads = 256, warps = threads / 32;

// n values at once: 16 bytes, or 1.
template <class T>
constexpr int at_once = 16 / sizeof(T);

template <int n>
__device__ void load(const float* p, float (&v)[n]) {
  if constexpr (n == 1) {
    v[0] = *p;
  } else {
    const float4 four = *reinterpret_cast<const float4*>(p);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  }
}
template <int n>
__device__ void store(float* p, const float (&v)[n]) {
  if constexpr (n == 1)
    *p = v[0];
  else
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
template <int n>
__device__ void load(const BrainFloat* p, float (&v)[n]) {
  if constexpr (n == 1) {
    v[0] = widened(*p);
  } else {
    const uint4 eight = *reinterpret_cast<const uint4*>(p);
    const unsigned pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(pairs[i] << 16);
      v[2 * i + 1] = __uint_as_float(pairs[i] & 0xFFFF0000u);
    }
  }
}
template <int n>
__device__ void store(BrainFloat* p, const float (&v)[n]) {
  if constexpr (n == 1) {
    narrowed(v[0], *p);
  } else {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(pairs);
  }
}

__device__ float sum_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, step);
  return x;
}
__device__ float most_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, step));
  return x;
}
// Of a row: a warp's or the block's. `room` is used once.
template <bool block>
__device__ float sum_of_row(float x, float* room) {
  x = sum_of_warp(x);
  if constexpr (!block) return x;
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) x += room[w];
  return x;
}

// most: pieces of a row that a thread holds.
template <class T, bool block, int most>
__global__ void __launch_bounds__(threads) norm_kernel(RmsNormJob<T> job) {
  constexpr int n = at_once<T>, lanes = block ? threads : 32;
  __shared__ float room[warps];
  const int lane = static_cast<int>(threadIdx.x) % lanes, width = static_cast<int>(job.width);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (threads / lanes) + threadIdx.x / lanes;
  if (row >= job.rows) return;  // whole warps
  const std::int64_t base = row * width;
  float v[most][n], squares = 0;
#pragma unroll
  for (int k = 0; k < most; ++k)
    if (const int c = (lane + k * lanes) * n; c < width) {
      load<n>(job.x + base + c, v[k]);
      if (job.add) {
        float add[n];
        load<n>(job.add + base + c, add);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          T rounded;
          narrowed(v[k][i] + add[i], rounded);
          v[k][i] = widened(rounded);
        }
        store<n>(job.sum + base + c, v[k]);
      }
#pragma unroll
      for (int i = 0; i < n; ++i) squares += v[k][i] * v[k][i];
    }
  const float factor = rsqrtf(sum_of_row<block>(squares, room) / static_cast<float>(width) + job.eps);
#pragma unroll
  for (int k = 0; k < most; ++k)
    if (const int c = (lane + k * lanes) * n; c < width) {
      float weight[n];
      load<n>(job.weight + c, weight);
#pragma unroll
      for (int i = 0; i < n; ++i) v[k][i] *= factor * weight[i];
      store<n>(job.y + base + c, v[k]);
    }
}

template <class T, bool block, int most>
__global__ void __launch_bounds__(threads) norm_backward_kernel(RmsNormBackwardJob<T> job) {
  constexpr int n = at_once<T>, lanes = block ? threads : 32;
  __shared__ float room[2][warps];
  const int lane = static_cast<int>(threadIdx.x) % lanes, width = static_cast<int>(job.width);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (threads / lanes) + threadIdx.x / lanes;
  if (row >= job.rows) return;
  const std::int64_t base = row * width;
  float x[most][n], g[most][n], squares = 0, along = 0;
#pragma unroll
  for (int k = 0; k < most; ++k)
    if (const int c = (lane + k * lanes) * n; c < width) {
      float weight[n];
      load<n>(job.sum + base + c, x[k]);
      load<n>(job.dy + base + c, g[k]);
      load<n>(job.weight + c, weight);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        g[k][i] *= weight[i];
        squares += x[k][i] * x[k][i];
        along += g[k][i] * x[k][i];
      }
    }
  squares = sum_of_row<block>(squares, room[0]);
  along = sum_of_row<block>(along, room[1]);
  const float factor = rsqrtf(squares / static_cast<float>(width) + job.eps);
  const float back = along * factor * factor * factor / static_cast<float>(width);
#pragma unroll
  for (int k = 0; k < most; ++k)
    if (const int c = (lane + k * lanes) * n; c < width) {
      float before[n] = {};
      if (job.dsum) load<n>(job.dsum + base + c, before);
#pragma unroll
      for (int i = 0; i < n; ++i) before[i] += g[k][i] * factor - x[k][i] * back;
      store<n>(job.dx + base + c, before);
    }
}

// A thread: n pairs of a head.
template <class T, int n>
__global__ void __launch_bounds__(threads) rotate_kernel(RotateJob<T> job) {
  const auto half = static_cast<int>(job.head_dim / 2), pieces = half / n;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= job.tokens * job.heads * pieces) return;
  const std::int64_t head = i / pieces, table = head / job.heads * job.head_dim;
  const int p = static_cast<int>(i % pieces) * n;
  const std::int64_t at = head * job.head_dim + p;
  float a[n], b[n], first[n], second[n];
  load<n>(job.x + at, a);
  load<n>(job.x + at + half, b);
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float cos = job.cos[table + p + k], sin = job.back ? -job.sin[table + p + k] : job.sin[table + p + k];
    first[k] = a[k] * cos - b[k] * sin;
    second[k] = b[k] * cos + a[k] * sin;
  }
  store<n>(job.y + at, first);
  store<n>(job.y + at + half, second);
}

template <class T, int n>
__global__ void __launch_bounds__(threads) swiglu_kernel(SwigluJob<T> job) {
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x) * n;
  if (i >= job.count) return;
  float g[n], u[n], dy[n];
  load<n>(job.gate + i, g);
  load<n>(job.up + i, u);
  if (job.dy) load<n>(job.dy + i, dy);
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float s = __fdividef(1.0f, 1 + __expf(-g[k])), silu = g[k] * s;
    if (job.dy) {
      g[k] = dy[k] * u[k] * s * (1 + g[k] * (1 - s));
      u[k] = dy[k] * silu;
    } else {
      u[k] *= silu;
    }
  }
  if (job.dy) store<n>(job.dgate + i, g);
  store<n>(job.dy ? job.dup + i : job.y + i, u);
}

// A block a row: maximum and sum of exponentials in one pass, the gradient in the second.
template <class T, int n>
__global__ void __launch_bounds__(threads) loss_kernel(TokenLossJob<T> job) {
  __shared__ float room[2][warps];
  T* const row = job.logits + blockIdx.x * job.vocab;
  const std::int64_t label = job.labels[blockIdx.x];
  const auto vocab = static_cast<int>(job.vocab), first = static_cast<int>(threadIdx.x) * n;
  float v[n], most = -INFINITY, sum = 0;
  const float of_label = label < 0 ? 0.0f : label < vocab ? widened(row[label]) : NAN;
  for (int c = first; c < vocab && label >= 0; c += threads * n) {
    load<n>(row + c, v);
    float here = v[0];
#pragma unroll
    for (int k = 1; k < n; ++k) here = fmaxf(here, v[k]);
    if (here > most) {
      sum *= __expf(most - here);
      most = here;
    }
#pragma unroll
    for (int k = 0; k < n; ++k) sum += __expf(v[k] - most);
  }
  const float warp_most = most_of_warp(most);
  if (threadIdx.x % 32 == 0) room[0][threadIdx.x / 32] = warp_most;
  __syncthreads();
  float all = -INFINITY;
#pragma unroll
  for (int w = 0; w < warps; ++w) all = fmaxf(all, room[0][w]);
  sum = sum_of_row<true>(most == -INFINITY ? 0.0f : sum * __expf(most - all), room[1]);
  if (threadIdx.x == 0) job.losses[blockIdx.x] = label < 0 ? 0.0f : logf(sum) + all - of_label;
  const float scale = label < 0 ? 0.0f : 1 / sum;
  for (int c = first; c < vocab; c += threads * n) {
    load<n>(row + c, v);
#pragma unroll
    for (int k = 0; k < n; ++k) v[k] = label < 0 ? 0.0f : __expf(v[k] - all) * scale - (c + k == label ? 1.0f : 0.0f);
    store<n>(row + c, v);
  }
}

unsigned blocks_of(std::int64_t items, std::int64_t each) {
  return cuda_blocks(static_cast<std::size_t>(items), static_cast<std::size_t>(each));
}

// run(is a row a block's?, pieces a thread) of the width, as constants.
template <class T, class F>
void by_width(std::int64_t width, F run) {
  constexpr int n = at_once<T>;
  const auto fits = [&](int lanes, int most) { return width <= std::int64_t{lanes} * n * most; };
  if (fits(32, 2)) return run(std::false_type(), std::integral_constant<int, 2>());
  if (fits(threads, 1)) return run(std::true_type(), std::integral_constant<int, 1>());
  if (fits(threads, 4)) return run(std::true_type(), std::integral_constant<int, 4>());
  if (fits(threads, 8)) return run(std::true_type(), std::integral_constant<int, 8>());
  throw Error(ExitCode::bug, "rms_norm", "a row is too wide");
}

template <class T>
void norm_on_cuda(const RmsNormJob<T>& job, Place place) {
  if (job.rows == 0) return;
  by_width<T>(job.width, [&](auto block, auto most) {
    const unsigned blocks = blocks_of(job.rows, block ? 1 : warps);
    norm_kernel<T, decltype(block)::value, decltype(most)::value><<<blocks, threads, 0, cuda_stream(place)>>>(job);
  });
  check_launch("rms_norm");
}

template <class T>
void norm_backward_on_cuda(const RmsNormBackwardJob<T>& job, Place place) {
  if (job.rows == 0) return;
  by_width<T>(job.width, [&](auto block, auto most) {
    const unsigned blocks = blocks_of(job.rows, block ? 1 : warps);
    norm_backward_kernel<T, decltype(block)::value, decltype(most)::value>
        <<<blocks, threads, 0, cuda_stream(place)>>>(job);
  });
  check_launch("rms_norm_backward");
}

template <class T>
void rotate_on_cuda(const RotateJob<T>& job, Place place) {
  const std::int64_t half = job.head_dim / 2, count = job.tokens * job.heads * half;
  if (count == 0) return;
  constexpr int n = at_once<T>;
  if (half % n == 0)
    rotate_kernel<T, n><<<blocks_of(count / n, threads), threads, 0, cuda_stream(place)>>>(job);
  else
    rotate_kernel<T, 1><<<blocks_of(count, threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("rotate_halves");
}

template <class T>
void swiglu_on_cuda(const SwigluJob<T>& job, Place place) {
  if (job.count == 0) return;
  constexpr int n = at_once<T>;
  if (job.count % n == 0)
    swiglu_kernel<T, n><<<blocks_of(job.count / n, threads), threads, 0, cuda_stream(place)>>>(job);
  else
    swiglu_kernel<T, 1><<<blocks_of(job.count, threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("swiglu");
}

template <class T>
void loss_on_cuda(const TokenLossJob<T>& job, Place place) {
  if (job.rows == 0) return;
  constexpr int n = at_once<T>;
  const auto blocks = static_cast<unsigned>(job.rows);
  if (job.vocab % n == 0 && aligned(job.logits, 16))
    loss_kernel<T, n><<<blocks, threads, 0, cuda_stream(place)>>>(job);
  else
    loss_kernel<T, 1><<<blocks, threads, 0, cuda_stream(place)>>>(job);
  check_launch("token_loss");
}

const Kernel<RmsNormJob<float>>::Twin norm_32(rms_norm_f32, norm_on_cuda<float>);
const Kernel<RmsNormJob<BrainFloat>>::Twin norm_16(rms_norm_bf16, norm_on_cuda<BrainFloat>);
const Kernel<RmsNormBackwardJob<float>>::Twin norm_back_32(rms_norm_backward_f32, norm_backward_on_cuda<float>);
const Kernel<RmsNormBackwardJob<BrainFloat>>::Twin norm_back_16(rms_norm_backward_bf16,
                                                                norm_backward_on_cuda<BrainFloat>);
const Kernel<RotateJob<float>>::Twin rotate_32(rotate_halves_f32, rotate_on_cuda<float>);
const Kernel<RotateJob<BrainFloat>>::Twin rotate_16(rotate_halves_bf16, rotate_on_cuda<BrainFloat>);
const Kernel<SwigluJob<float>>::Twin swiglu_32(swiglu_f32, swiglu_on_cuda<float>);
const Kernel<SwigluJob<BrainFloat>>::Twin swiglu_16(swiglu_bf16, swiglu_on_cuda<BrainFloat>);
const Kernel<TokenLossJob<float>>::Twin loss_32(token_loss_f32, loss_on_cuda<float>);
const Kernel<TokenLossJob<BrainFloat>>::Twin loss_16(token_loss_bf16, loss_on_cuda<BrainFloat>);

}  // namespace
}  // namespace trireme::kernels

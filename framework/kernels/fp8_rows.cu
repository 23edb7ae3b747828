// A block a row, read twice: the second time from the cache.
#include "comm/cuda_launch.h"
#include "framework/kernels/fp8_rows.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace trireme::kernels {
namespace {

constexpr int threads = 256, warps = threads / 32, n = 8;  // values of a thread at once

__device__ void load(const float* p, float (&v)[n]) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ void load(const __nv_bfloat16* p, float (&v)[n]) {
  const uint4 eight = *reinterpret_cast<const uint4*>(p);
  const unsigned pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(pairs[i] << 16);
    v[2 * i + 1] = __uint_as_float(pairs[i] & 0xFFFF0000u);
  }
}

template <class T>
__device__ void load_scaled(const T* x, const float* columns, std::int64_t c, float (&v)[n]) {
  load(x + c, v);
  if (!columns) return;
  float by[n];
  load(columns + c, by);
#pragma unroll
  for (int i = 0; i < n; ++i) v[i] *= by[i];
}

template <class T>
__global__ void __launch_bounds__(threads) rows_kernel(Fp8RowsJob job) {
  __shared__ float room[warps];
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * job.width;
  const T* const x = static_cast<const T*>(job.x) + base;
  float v[n], most = 0;
  for (std::int64_t c = threadIdx.x * n; c < job.width; c += threads * n) {
    load_scaled(x, job.columns, c, v);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float size = fabsf(v[i]);
      most = size <= most ? most : size - size == 0 ? size : INFINITY;  // of no number too
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, step));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < warps; ++w) most = fmaxf(most, room[w]);
  const bool finite = most - most == 0;
  const float scale = finite ? fmaxf(most, fp8_least) / 448 : 1, inverse = 1 / scale;
  if (threadIdx.x == 0) job.scales[blockIdx.x] = finite ? scale : NAN;
  for (std::int64_t c = threadIdx.x * n; c < job.width; c += threads * n) {
    load_scaled(x, job.columns, c, v);
    uint2 codes;
    auto* const pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&codes);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] =
          __nv_cvt_float2_to_fp8x2(make_float2(v[2 * i] * inverse, v[2 * i + 1] * inverse), __NV_SATFINITE, __NV_E4M3);
    *reinterpret_cast<uint2*>(job.codes + base + c) = codes;
  }
}

void on_cuda(const Fp8RowsJob& job, Place place) {
  if (job.rows == 0) return;
  const auto blocks = static_cast<unsigned>(job.rows);
  if (job.type == DType::f32)
    rows_kernel<float><<<blocks, threads, 0, cuda_stream(place)>>>(job);
  else
    rows_kernel<__nv_bfloat16><<<blocks, threads, 0, cuda_stream(place)>>>(job);
  check_launch("fp8_rows");
}

const Kernel<Fp8RowsJob>::Twin registered(fp8_rows, on_cuda);

}  // namespace
}  // namespace trireme::kernels

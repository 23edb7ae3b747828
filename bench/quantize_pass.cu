#include "bench/quantize_pass.h"
#include "comm/cuda_launch.h"

#include <cfloat>

namespace trireme::bench {
namespace {

constexpr int threads = 256;

// A part of a chunk, in groups of four values; `each` is a multiple of 4 * quantize_parts.
__device__ std::size_t part_size(std::size_t each) { return each / 4 / quantize_parts; }

__global__ void __launch_bounds__(threads) range_kernel(QuantizePass job) {
  __shared__ float lows[threads / 32], highs[threads / 32];
  const std::size_t part = part_size(job.each);
  const auto* v = reinterpret_cast<const float4*>(job.values + blockIdx.y * job.each) + blockIdx.x * part;
  float low = FLT_MAX, high = -FLT_MAX;
  for (std::size_t i = threadIdx.x; i < part; i += threads) {
    const float4 x = v[i];
    low = fminf(fminf(low, fminf(x.x, x.y)), fminf(x.z, x.w));
    high = fmaxf(fmaxf(high, fmaxf(x.x, x.y)), fmaxf(x.z, x.w));
  }
  for (int step = 16; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
  }
  if (threadIdx.x % 32 == 0) lows[threadIdx.x / 32] = low, highs[threadIdx.x / 32] = high;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < threads / 32; ++w) low = fminf(low, lows[w]), high = fmaxf(high, highs[w]);
  float* to = job.partial + 2 * (blockIdx.y * quantize_parts + blockIdx.x);
  to[0] = low, to[1] = high;
}

__global__ void __launch_bounds__(threads) quantize_kernel(QuantizePass job) {
  const float* partial = job.partial + 2 * blockIdx.y * quantize_parts;
  float low = partial[0], high = partial[1];
  for (unsigned p = 1; p < quantize_parts; ++p)
    low = fminf(low, partial[2 * p]), high = fmaxf(high, partial[2 * p + 1]);
  const float step = 2 * job.bound * (high - low), inverse = step > 0 ? 1 / step : 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) job.steps[blockIdx.y] = step;
  const std::size_t part = part_size(job.each), first = blockIdx.y * job.each / 4 + blockIdx.x * part;
  const auto* v = reinterpret_cast<const float4*>(job.values) + first;
  auto* to = reinterpret_cast<char4*>(job.codes) + first;
  const auto code = [inverse](float x) {
    return static_cast<signed char>(fminf(fmaxf(rintf(x * inverse), -128.0f), 127.0f));
  };
  for (std::size_t i = threadIdx.x; i < part; i += threads) {
    const float4 x = v[i];
    to[i] = make_char4(code(x.x), code(x.y), code(x.z), code(x.w));
  }
}

__global__ void __launch_bounds__(threads) dequantize_kernel(DequantizePass job) {
  const float step = job.steps[blockIdx.y];
  const std::size_t part = part_size(job.each), first = blockIdx.y * job.each / 4 + blockIdx.x * part;
  const auto* codes = reinterpret_cast<const char4*>(job.codes) + first;
  auto* to = reinterpret_cast<float4*>(job.values) + first;
  for (std::size_t i = threadIdx.x; i < part; i += threads) {
    const char4 c = codes[i];
    to[i] = make_float4(c.x * step, c.y * step, c.z * step, c.w * step);
  }
}

void quantize(const QuantizePass& job, Place place) {
  const dim3 grid(quantize_parts, static_cast<unsigned>(job.chunks));
  range_kernel<<<grid, threads, 0, cuda_stream(place)>>>(job);
  quantize_kernel<<<grid, threads, 0, cuda_stream(place)>>>(job);
  check_launch("quantize_pass");
}
void dequantize(const DequantizePass& job, Place place) {
  dequantize_kernel<<<dim3(quantize_parts, static_cast<unsigned>(job.chunks)), threads, 0, cuda_stream(place)>>>(job);
  check_launch("dequantize_pass");
}

const Kernel<QuantizePass>::Twin quantizer(quantize_pass, quantize);
const Kernel<DequantizePass>::Twin dequantizer(dequantize_pass, dequantize);

}  // namespace
}  // namespace trireme::bench

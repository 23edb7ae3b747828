// The CUDA twins: a thread makes four values, by one load and one store of each array where addresses allow it. The
// arithmetic is the host's, bit for bit, also of NaNs (comm/reduce.cpp).
#include "comm/cuda_launch.h"
#include "compression/codecs/kernels.h"

#include <cuda_fp16.h>

namespace trireme {
namespace {

constexpr int threads = 256, per_thread = 4;

struct Bf16 {
  static constexpr const char* name = "bf16 kernel";
  static __device__ unsigned short narrow(float v) {
    const unsigned bits = __float_as_uint(v);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<unsigned short>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  static __device__ float widen(unsigned short h) { return __uint_as_float(static_cast<unsigned>(h) << 16); }
};

struct Fp16 {
  static constexpr const char* name = "fp16 kernel";
  static __device__ unsigned short narrow(float v) {
    const unsigned bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>(((bits >> 16) & 0x8000u) | 0x7e00u);
    return __half_as_ushort(__float2half_rn(v));
  }
  static __device__ float widen(unsigned short h) {
    if ((h & 0x7fffu) > 0x7c00u)
      return __uint_as_float((static_cast<unsigned>(h & 0x8000u) << 16) | 0x7f800000u |
                             (static_cast<unsigned>(h & 0x3ffu) << 13));
    return __half2float(__ushort_as_half(h));
  }
};

template <class Type>
__device__ unsigned short encode_one(float v, float before, float* error) {
  if (!error) return Type::narrow(v);
  const float sum = v + before;
  const unsigned short code = Type::narrow(sum);
  const float lost = sum - Type::widen(code);
  *error = lost - lost == 0 ? lost : 0;
  return code;
}

template <class Type>
__global__ void __launch_bounds__(threads) encode_kernel(EncodeJob job, bool vectors) {
  const std::size_t i = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) * per_thread;
  auto* code = reinterpret_cast<unsigned short*>(job.code);
  if (vectors && i + per_thread <= job.count) {
    const float4 v = *reinterpret_cast<const float4*>(job.in + i);
    float4 b = make_float4(0, 0, 0, 0), e;
    if (job.error) b = *reinterpret_cast<const float4*>(job.before + i);
    const bool keep = job.error != nullptr;
    ushort4 c;
    c.x = encode_one<Type>(v.x, b.x, keep ? &e.x : nullptr);
    c.y = encode_one<Type>(v.y, b.y, keep ? &e.y : nullptr);
    c.z = encode_one<Type>(v.z, b.z, keep ? &e.z : nullptr);
    c.w = encode_one<Type>(v.w, b.w, keep ? &e.w : nullptr);
    *reinterpret_cast<ushort4*>(code + i) = c;
    if (keep) *reinterpret_cast<float4*>(job.error + i) = e;
    return;
  }
  for (std::size_t k = i; k < i + per_thread && k < job.count; ++k)
    code[k] = encode_one<Type>(job.in[k], job.error ? job.before[k] : 0, job.error ? job.error + k : nullptr);
}

template <class Type>
__global__ void __launch_bounds__(threads) decode_kernel(const __grid_constant__ DecodeJob job, bool vectors) {
  const std::size_t i = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) * per_thread;
  if (vectors && i + per_thread <= job.count) {
    float4 sum = make_float4(0, 0, 0, 0);
    if (job.add) sum = *reinterpret_cast<const float4*>(job.out + i);
    for (std::size_t k = 0; k < job.codes; ++k) {
      const ushort4 c = *reinterpret_cast<const ushort4*>(job.code[k] + 2 * i);
      const float4 v = make_float4(Type::widen(c.x), Type::widen(c.y), Type::widen(c.z), Type::widen(c.w));
      sum = k == 0 && !job.add ? v : make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    *reinterpret_cast<float4*>(job.out + i) = sum;
    return;
  }
  for (std::size_t at = i; at < i + per_thread && at < job.count; ++at) {
    float sum = job.add ? job.out[at] : 0;
    for (std::size_t k = 0; k < job.codes; ++k) {
      const float v = Type::widen(reinterpret_cast<const unsigned short*>(job.code[k])[at]);
      sum = k == 0 && !job.add ? v : sum + v;
    }
    job.out[at] = sum;
  }
}

template <class Type>
void encode(const EncodeJob& job, Place place) {
  const bool vectors = aligned(job.in, 16) && aligned(job.before, 16) && aligned(job.error, 16) && aligned(job.code, 8);
  encode_kernel<Type><<<cuda_blocks(job.count, threads * per_thread), threads, 0, cuda_stream(place)>>>(job, vectors);
  check_launch(Type::name);
}

template <class Type>
void decode(const DecodeJob& job, Place place) {
  bool vectors = aligned(job.out, 16);
  for (std::size_t k = 0; k < job.codes; ++k) vectors = vectors && aligned(job.code[k], 8);
  decode_kernel<Type><<<cuda_blocks(job.count, threads * per_thread), threads, 0, cuda_stream(place)>>>(job, vectors);
  check_launch(Type::name);
}

const Kernel<EncodeJob>::Twin bf16_encoder(encode_bf16, encode<Bf16>), fp16_encoder(encode_fp16, encode<Fp16>);
const Kernel<DecodeJob>::Twin bf16_decoder(decode_bf16, decode<Bf16>), fp16_decoder(decode_fp16, decode<Fp16>);

}  // namespace
}  // namespace trireme

// nvCOMPDx's ANS with our quantiser fused around it: codes never leave shared memory. bench/peers/nvcompdx builds this
// into a library that `bench codec_peers` loads; nothing of Trireme is built with it.
#include <cfloat>
#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

// Made by libmathdx for pieces of K KiB and W warps: all threads of a block call them.
#define ANS(K, W)                                                                                                    \
  extern "C" __device__ void ans_encode_##K##_##W(const void*, void*, const unsigned long long*, unsigned long long*, \
                                                  unsigned char*, unsigned char*);                                   \
  extern "C" __device__ void ans_decode_##K##_##W(const void*, void*, const unsigned long long*, unsigned long long*, \
                                                  unsigned char*, unsigned char*);
#include "nvcompdx_pieces.h"
#undef ANS

namespace {

constexpr std::size_t each = 2048 * 64;  // values of a chunk, which has a range of its own
constexpr int parts = 32;                // blocks that look for it

__device__ float2 join(float2 a, float2 b) { return {fminf(a.x, b.x), fmaxf(a.y, b.y)}; }

__global__ void __launch_bounds__(256) range(const float4* values, float2* partial) {
  __shared__ float2 warps[8];
  const float4* v = values + (blockIdx.y * parts + blockIdx.x) * (each / 4 / parts);
  float2 r{FLT_MAX, -FLT_MAX};
  for (unsigned i = threadIdx.x; i < each / 4 / parts; i += 256)
    r = join(r, {fminf(fminf(v[i].x, v[i].y), fminf(v[i].z, v[i].w)), fmaxf(fmaxf(v[i].x, v[i].y), fmaxf(v[i].z, v[i].w))});
  for (int step = 16; step > 0; step /= 2)
    r = join(r, {__shfl_xor_sync(~0u, r.x, step), __shfl_xor_sync(~0u, r.y, step)});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = r;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < 8; ++w) r = join(r, warps[w]);
  partial[blockIdx.y * parts + blockIdx.x] = r;
}

template <class Ans>
__global__ void __launch_bounds__(32 * Ans::warps) encode(const float4* values, const float2* partial, float bound,
                                                          float* steps, unsigned char* out, unsigned long long* sizes) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr std::size_t pieces = each / Ans::bytes;
  float2 r = partial[blockIdx.x / pieces * parts];
  for (int p = 1; p < parts; ++p) r = join(r, partial[blockIdx.x / pieces * parts + p]);
  const float step = 2 * bound * (r.y - r.x), inverse = step > 0 ? 1 / step : 0;
  if (threadIdx.x == 0 && blockIdx.x % pieces == 0) steps[blockIdx.x / pieces] = step;
  const auto code = [inverse](float x) {
    return static_cast<signed char>(fminf(fmaxf(rintf(x * inverse), -128.0f), 127.0f));
  };
  const float4* v = values + blockIdx.x * (Ans::bytes / 4);
  auto* codes = reinterpret_cast<char4*>(shared);
  for (unsigned i = threadIdx.x; i < Ans::bytes / 4; i += 32 * Ans::warps)
    codes[i] = make_char4(code(v[i].x), code(v[i].y), code(v[i].z), code(v[i].w));
  __syncthreads();
  const unsigned long long size = Ans::bytes;
  Ans::encode(shared, out + blockIdx.x * Ans::room, &size, sizes + blockIdx.x, shared + Ans::bytes);
}

template <class Ans>
__global__ void __launch_bounds__(32 * Ans::warps) decode(const unsigned char* in, const unsigned long long* sizes,
                                                          unsigned long long* decoded, const float* steps, float4* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned long long size = sizes[blockIdx.x];
  Ans::decode(in + blockIdx.x * Ans::room, shared, &size, decoded + blockIdx.x, shared + Ans::bytes);
  __syncthreads();
  const float step = steps[blockIdx.x / (each / Ans::bytes)];
  const auto* codes = reinterpret_cast<const char4*>(shared);
  float4* to = out + blockIdx.x * (Ans::bytes / 4);
  for (unsigned i = threadIdx.x; i < Ans::bytes / 4; i += 32 * Ans::warps) {
    const char4 c = codes[i];
    to[i] = make_float4(c.x * step, c.y * step, c.z * step, c.w * step);
  }
}

// Memory of a case: everything is made once.
struct Case {
  std::size_t pieces, chunks;
  float2* partial;
  float* steps;
  unsigned char* out;
  unsigned long long *sizes, *decoded;
};

template <class Ans>
struct Arm {
  static bool start(std::size_t chunks, Case& c) {
    c.chunks = chunks, c.pieces = chunks * (each / Ans::bytes);
    cudaFuncSetAttribute(encode<Ans>, cudaFuncAttributeMaxDynamicSharedMemorySize, Ans::bytes + Ans::encode_shared);
    cudaFuncSetAttribute(decode<Ans>, cudaFuncAttributeMaxDynamicSharedMemorySize, Ans::bytes + Ans::decode_shared);
    return cudaMalloc(&c.partial, chunks * parts * sizeof(float2)) == cudaSuccess &&
           cudaMalloc(&c.steps, chunks * sizeof(float)) == cudaSuccess &&
           cudaMalloc(&c.out, c.pieces * Ans::room) == cudaSuccess &&
           cudaMalloc(&c.sizes, c.pieces * 8) == cudaSuccess && cudaMalloc(&c.decoded, c.pieces * 8) == cudaSuccess;
  }
  static void to_codes(const Case& c, const float* values, float bound, cudaStream_t stream) {
    const auto* v = reinterpret_cast<const float4*>(values);
    range<<<dim3(parts, unsigned(c.chunks)), 256, 0, stream>>>(v, c.partial);
    encode<Ans><<<unsigned(c.pieces), 32 * Ans::warps, Ans::bytes + Ans::encode_shared, stream>>>(
        v, c.partial, bound, c.steps, c.out, c.sizes);
  }
  static void to_values(const Case& c, float* values, cudaStream_t stream) {
    decode<Ans><<<unsigned(c.pieces), 32 * Ans::warps, Ans::bytes + Ans::decode_shared, stream>>>(
        c.out, c.sizes, c.decoded, c.steps, reinterpret_cast<float4*>(values));
  }
};

struct Entry {
  int kib, warps;
  bool (*start)(std::size_t, Case&);
  void (*to_codes)(const Case&, const float*, float, cudaStream_t);
  void (*to_values)(const Case&, float*, cudaStream_t);
};

#define ANS(K, W)                                                                                            \
  struct Ans_##K##_##W {                                                                                     \
    static constexpr int warps = W;                                                                          \
    static constexpr std::size_t bytes = K << 10, room = ANS_ROOM_##K##_##W,                                 \
                                 encode_shared = ANS_ENCODE_SHARED_##K##_##W,                                \
                                 decode_shared = ANS_DECODE_SHARED_##K##_##W;                                \
    static __device__ void encode(const void* in, void* out, const unsigned long long* n,                    \
                                  unsigned long long* to, unsigned char* shared) {                           \
      ans_encode_##K##_##W(in, out, n, to, shared, nullptr);                                                 \
    }                                                                                                        \
    static __device__ void decode(const void* in, void* out, const unsigned long long* n,                    \
                                  unsigned long long* to, unsigned char* shared) {                           \
      ans_decode_##K##_##W(in, out, n, to, shared, nullptr);                                                 \
    }                                                                                                        \
  };
#include "nvcompdx_pieces.h"
#undef ANS
#define ANS(K, W) {K, W, Arm<Ans_##K##_##W>::start, Arm<Ans_##K##_##W>::to_codes, Arm<Ans_##K##_##W>::to_values},
const Entry entries[] = {
#include "nvcompdx_pieces.h"
};
#undef ANS
constexpr int count = sizeof entries / sizeof *entries;
Case cases[count];

}  // namespace

extern "C" {
int nvcompdx_arms() { return count; }
void nvcompdx_shape(int arm, int* kib, int* warps) { *kib = entries[arm].kib, *warps = entries[arm].warps; }
int nvcompdx_start(int arm, std::size_t chunks) {
  cases[arm] = {};
  return entries[arm].start(chunks, cases[arm]) ? 0 : 1;
}
void nvcompdx_encode(int arm, const float* values, float bound, void* stream) {
  entries[arm].to_codes(cases[arm], values, bound, static_cast<cudaStream_t>(stream));
}
void nvcompdx_decode(int arm, float* values, void* stream) {
  entries[arm].to_values(cases[arm], values, static_cast<cudaStream_t>(stream));
}
// Bytes of all pieces, 8 of size each, and of the chunks' steps; 0 where a piece did not decode to its size.
std::size_t nvcompdx_bytes(int arm) {
  const Case& c = cases[arm];
  std::size_t sum = 4 * c.chunks + 8 * c.pieces;
  for (std::size_t i = 0; i < c.pieces; ++i) {
    unsigned long long size = 0, decoded = 0;
    if (cudaMemcpy(&size, c.sizes + i, 8, cudaMemcpyDeviceToHost) != cudaSuccess ||
        cudaMemcpy(&decoded, c.decoded + i, 8, cudaMemcpyDeviceToHost) != cudaSuccess ||
        decoded != std::size_t(entries[arm].kib) << 10)
      return 0;
    sum += size;
  }
  return sum;
}
void nvcompdx_stop(int arm) {
  const Case& c = cases[arm];
  for (void* p : {static_cast<void*>(c.partial), static_cast<void*>(c.steps), static_cast<void*>(c.out),
                  static_cast<void*>(c.sizes), static_cast<void*>(c.decoded)})
    cudaFree(p);
}
}

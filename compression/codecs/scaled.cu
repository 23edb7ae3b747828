// The CUDA twins. A warp encodes a block of 128 values, a lane four neighbours; a thread decodes four. Rounds where the
// host rounds: compiled with -fmad=false.
#include "comm/cuda_launch.h"
#include "compression/codecs/scaled.h"

namespace trireme {
namespace {

using namespace coding;

constexpr int threads = 256, lanes = 32, four = 4;

// Up to four neighbours, zeros beyond the end.
__device__ void load(const float* from, std::size_t n, bool vectors, float (&v)[four]) {
  if (vectors && n >= four) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    return;
  }
  for (int k = 0; k < four; ++k) v[k] = k < n ? from[k] : 0;
}
__device__ void store(float* to, std::size_t n, bool vectors, const float (&v)[four]) {
  if (vectors && n >= four) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
  for (int k = 0; k < four && k < n; ++k) to[k] = v[k];
}

// A scale may lie at any address.
__device__ void store_scale(std::uint8_t* to, float scale) {
  const std::uint32_t bits = __float_as_uint(scale);
  for (int b = 0; b < 4; ++b) to[b] = static_cast<std::uint8_t>(bits >> (8 * b));
}
__device__ float load_scale(const std::uint8_t* from) {
  std::uint32_t bits = 0;
  for (int b = 0; b < 4; ++b) bits |= static_cast<std::uint32_t>(from[b]) << (8 * b);
  return __uint_as_float(bits);
}

// Codes of four neighbours, the first number even.
__device__ void store_codes(Fp8Block, const std::uint32_t (&c)[four], std::size_t n, bool vectors, std::uint8_t* to) {
  if (vectors && n >= four) {
    *reinterpret_cast<std::uint32_t*>(to) = c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24;
    return;
  }
  for (int k = 0; k < four && k < n; ++k) to[k] = static_cast<std::uint8_t>(c[k]);
}
__device__ void store_codes(Int4Block, const std::uint32_t (&c)[four], std::size_t n, bool, std::uint8_t* to) {
  for (int k = 0; k < four && k < n; k += 2)
    to[k / 2] = static_cast<std::uint8_t>(c[k] | (k + 1 < n ? c[k + 1] << 4 : 0));
}
__device__ void load_codes(Fp8Block, const std::uint8_t* from, std::size_t n, bool vectors, std::uint32_t (&c)[four]) {
  if (vectors && n >= four) {
    const std::uint32_t all = *reinterpret_cast<const std::uint32_t*>(from);
    for (int k = 0; k < four; ++k) c[k] = all >> (8 * k) & 255;
    return;
  }
  for (int k = 0; k < four; ++k) c[k] = k < n ? from[k] : 0;
}
__device__ void load_codes(Int4Block, const std::uint8_t* from, std::size_t n, bool, std::uint32_t (&c)[four]) {
  for (int k = 0; k < four; ++k) c[k] = k < n ? from[k / 2] >> (k % 2 * 4) & 15 : 0;
}

template <class Format>
__global__ void __launch_bounds__(threads) encode_kernel(EncodeJob job, bool vectors, std::size_t blocks) {
  const std::size_t b = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) / lanes;
  if (b >= blocks) return;  // the whole warp
  const std::size_t i = b * scaled_block + threadIdx.x % lanes * four, n = i < job.count ? job.count - i : 0;
  float v[four] = {}, error[four] = {};
  if (n > 0) load(job.in + i, n, vectors, v);
  if (job.error && n > 0) {
    load(job.before + i, n, vectors, error);
    for (int k = 0; k < four; ++k) v[k] += error[k];
  }
  std::uint32_t largest = 0;
  for (int k = 0; k < four; ++k) largest = max(largest, __float_as_uint(v[k]) & 0x7fffffffu);
  for (int step = lanes / 2; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  const float scale = scaled_scale<Format>(largest), inverse = scale > 0 ? 1 / scale : 0;
  if (threadIdx.x % lanes == 0) store_scale(job.code + b * sizeof scale, scale);
  if (n == 0) return;
  std::uint32_t codes[four];
  for (int k = 0; k < four; ++k) {
    codes[k] = Format::code(inverse == 0 ? 0 : v[k] * inverse);
    error[k] = is_finite(scale) ? v[k] - scaled_value<Format>(codes[k], scale) : 0;
  }
  store_codes(Format(), codes, n, vectors, job.code + sizeof scale * blocks + Format::bytes(i));
  if (job.error) store(job.error + i, n, vectors, error);
}

template <class Format>
__global__ void __launch_bounds__(threads)
    decode_kernel(const __grid_constant__ DecodeJob job, bool vectors, std::size_t blocks) {
  const std::size_t i = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) * four;
  if (i >= job.count) return;
  const std::size_t n = job.count - i;
  float sum[four] = {};
  if (job.add) load(job.out + i, n, vectors, sum);
  for (std::size_t r = 0; r < job.codes; ++r) {
    const float scale = load_scale(job.code[r] + i / scaled_block * sizeof scale);
    std::uint32_t codes[four];
    load_codes(Format(), job.code[r] + sizeof scale * blocks + Format::bytes(i), n, vectors, codes);
    for (int k = 0; k < four; ++k) {
      const float v = scaled_value<Format>(codes[k], scale);
      sum[k] = r == 0 && !job.add ? v : sum[k] + v;
    }
  }
  store(job.out + i, n, vectors, sum);
}

template <class Format>
void encode(const EncodeJob& job, Place place) {
  const std::size_t blocks = scaled_blocks(job.count);
  const bool vectors = aligned(job.in, 16) && aligned(job.before, 16) && aligned(job.error, 16) && aligned(job.code, 4);
  encode_kernel<Format><<<cuda_blocks(blocks, threads / lanes), threads, 0, cuda_stream(place)>>>(job, vectors, blocks);
  check_launch("fp8 or int4 encoder");
}

template <class Format>
void decode(const DecodeJob& job, Place place) {
  bool vectors = aligned(job.out, 16);
  for (std::size_t r = 0; r < job.codes; ++r) vectors = vectors && aligned(job.code[r], 4);
  decode_kernel<Format><<<cuda_blocks(job.count, threads * four), threads, 0, cuda_stream(place)>>>(
      job, vectors, scaled_blocks(job.count));
  check_launch("fp8 or int4 decoder");
}

const Kernel<EncodeJob>::Twin fp8_encoder(encode_fp8, encode<Fp8Block>), int4_encoder(encode_int4, encode<Int4Block>);
const Kernel<DecodeJob>::Twin fp8_decoder(decode_fp8, decode<Fp8Block>), int4_decoder(decode_int4, decode<Int4Block>);

}  // namespace
}  // namespace trireme

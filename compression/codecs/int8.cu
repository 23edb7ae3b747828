// The CUDA twins. A warp encodes a block of 256 values, a lane two times four of them; a thread decodes four. Rounds
// where the host rounds: compiled with -fmad=false.
#include "comm/cuda_launch.h"
#include "compression/codecs/kernels.h"

namespace trireme {
namespace {

constexpr int threads = 256, lanes = 32, per_lane = 8, per_thread = 4;
constexpr float smallest_normal = 1.17549435e-38f;

// A scale may lie at any address.
__device__ void store_scale(std::uint8_t* to, float scale) {
  const unsigned bits = __float_as_uint(scale);
  for (int b = 0; b < 4; ++b) to[b] = static_cast<std::uint8_t>(bits >> (8 * b));
}
__device__ float load_scale(const std::uint8_t* from) {
  if (aligned(from, sizeof(float))) return *reinterpret_cast<const float*>(from);
  unsigned bits = 0;
  for (int b = 0; b < 4; ++b) bits |= static_cast<unsigned>(from[b]) << (8 * b);
  return __uint_as_float(bits);
}

// Where value k of a lane lies in its block: lanes load four neighbours at a time.
__device__ std::size_t place_of(int lane, int k) {
  return static_cast<std::size_t>(k / 4 * 4 * lanes + lane * 4 + k % 4);
}

// The lane's values, zeros beyond the end.
__device__ void load(const float* block, std::size_t n, bool vectors, int lane, float (&v)[per_lane]) {
  if (vectors && n == int8_block) {
    for (int half = 0; half < 2; ++half) {
      const float4 four = *reinterpret_cast<const float4*>(block + place_of(lane, 4 * half));
      v[4 * half] = four.x, v[4 * half + 1] = four.y, v[4 * half + 2] = four.z, v[4 * half + 3] = four.w;
    }
    return;
  }
  for (int k = 0; k < per_lane; ++k) {
    const std::size_t i = place_of(lane, k);
    v[k] = i < n ? block[i] : 0;
  }
}

__device__ void store(float* block, std::size_t n, bool vectors, int lane, const float (&v)[per_lane]) {
  if (vectors && n == int8_block) {
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float4*>(block + place_of(lane, 4 * half)) =
          make_float4(v[4 * half], v[4 * half + 1], v[4 * half + 2], v[4 * half + 3]);
    return;
  }
  for (int k = 0; k < per_lane; ++k)
    if (const std::size_t i = place_of(lane, k); i < n) block[i] = v[k];
}

__device__ void store_codes(std::int8_t* block, std::size_t n, bool vectors, int lane,
                            const std::int8_t (&c)[per_lane]) {
  if (vectors && n == int8_block) {
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<char4*>(block + place_of(lane, 4 * half)) =
          make_char4(c[4 * half], c[4 * half + 1], c[4 * half + 2], c[4 * half + 3]);
    return;
  }
  for (int k = 0; k < per_lane; ++k)
    if (const std::size_t i = place_of(lane, k); i < n) block[i] = c[k];
}

__global__ void __launch_bounds__(threads) encode_kernel(EncodeJob job, bool vectors, std::size_t blocks) {
  const std::size_t b = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x % lanes);
  if (b >= blocks) return;  // the whole warp
  const std::size_t first = b * int8_block, left = job.count - first, n = left < int8_block ? left : int8_block;
  float v[per_lane], error[per_lane];
  load(job.in + first, n, vectors, lane, v);
  if (job.error) {
    load(job.before + first, n, vectors, lane, error);
    for (int k = 0; k < per_lane; ++k) v[k] += error[k];
  }
  // The bits of magnitudes are in the order of the magnitudes, infinity and NaN above all numbers.
  int largest = 0;
  for (int k = 0; k < per_lane; ++k) largest = max(largest, __float_as_int(v[k]) & 0x7fffffff);
  for (int step = lanes / 2; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  const bool finite = largest < 0x7f800000;
  const float scale = finite ? __int_as_float(largest) / int8_levels : __int_as_float(0x7fc00000);
  if (lane == 0) store_scale(job.code + b * sizeof(float), scale);
  std::int8_t code[per_lane] = {};
  if (scale >= smallest_normal) {  // a denormal scale has no finite inverse: all codes are zero, as with NaN
    const float inverse = 1 / scale;
    for (int k = 0; k < per_lane; ++k) {
      code[k] = static_cast<std::int8_t>(__float_as_int(v[k] * inverse + int8_rounder) - __float_as_int(int8_rounder));
      error[k] = v[k] - scale * static_cast<float>(code[k]);
    }
  } else {
    for (int k = 0; k < per_lane; ++k) error[k] = finite ? v[k] : 0;
  }
  store_codes(reinterpret_cast<std::int8_t*>(job.code + sizeof(float) * blocks) + first, n, vectors, lane, code);
  if (job.error) store(job.error + first, n, vectors, lane, error);
}

__global__ void __launch_bounds__(threads)
    decode_kernel(const __grid_constant__ DecodeJob job, bool vectors, std::size_t blocks) {
  const std::size_t i = (static_cast<std::size_t>(blockIdx.x) * threads + threadIdx.x) * per_thread;
  if (i >= job.count) return;
  const std::size_t scale_at = i / int8_block * sizeof(float), code_at = sizeof(float) * blocks + i;
  const bool four = vectors && i + per_thread <= job.count;
  const int n = i + per_thread <= job.count ? per_thread : static_cast<int>(job.count - i);
  float sum[per_thread] = {};
  if (job.add)
    for (int k = 0; k < per_thread; ++k) sum[k] = k < n ? job.out[i + k] : 0;
  for (std::size_t r = 0; r < job.codes; ++r) {
    const float scale = load_scale(job.code[r] + scale_at);
    const auto* code = reinterpret_cast<const signed char*>(job.code[r] + code_at);
    signed char c[per_thread] = {};
    if (four) {
      const char4 packed = *reinterpret_cast<const char4*>(code);
      c[0] = packed.x, c[1] = packed.y, c[2] = packed.z, c[3] = packed.w;
    } else {
      for (int k = 0; k < per_thread; ++k) c[k] = k < n ? code[k] : 0;
    }
    for (int k = 0; k < per_thread; ++k) {
      const float v = scale * static_cast<float>(c[k]);
      sum[k] = r == 0 && !job.add ? v : sum[k] + v;
    }
  }
  if (four) {
    *reinterpret_cast<float4*>(job.out + i) = make_float4(sum[0], sum[1], sum[2], sum[3]);
  } else {
    for (int k = 0; k < per_thread; ++k)
      if (k < n) job.out[i + k] = sum[k];
  }
}

void encode(const EncodeJob& job, Place place) {
  const std::size_t blocks = int8_blocks(job.count);
  const bool vectors = aligned(job.in, 16) && aligned(job.before, 16) && aligned(job.error, 16) && aligned(job.code, 4);
  encode_kernel<<<cuda_blocks(blocks, threads / lanes), threads, 0, cuda_stream(place)>>>(job, vectors, blocks);
  check_launch("int8 encoder");
}

void decode(const DecodeJob& job, Place place) {
  bool vectors = aligned(job.out, 16);
  for (std::size_t r = 0; r < job.codes; ++r) vectors = vectors && aligned(job.code[r], 4);
  decode_kernel<<<cuda_blocks(job.count, threads * per_thread), threads, 0, cuda_stream(place)>>>(
      job, vectors, int8_blocks(job.count));
  check_launch("int8 decoder");
}

const Kernel<EncodeJob>::Twin encoder(encode_int8, encode);
const Kernel<DecodeJob>::Twin decoder(decode_int8, decode);

}  // namespace
}  // namespace trireme

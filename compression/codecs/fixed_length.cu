// The CUDA twin of fixed_length. Encoding is three launches for 64 chunks: (1) a warp a block of 32 values: codes,
// their width, what they lose, and their words into scratch memory; (2) a block a chunk: where its words go, its size;
// (3) words side by side. Decoding is two: (1) a block a chunk: is it good, and where are its words; (2) a warp a
// block. Compiled with -fmad=false: rounds where the host rounds.
#include "compression/codecs/fixed_length.h"
#include "compression/stages/block.cuh"

#include <cstring>

namespace trireme {
namespace {

using namespace fixed_length;
using coding::all_lanes, coding::block_threads, coding::block_warps;

constexpr unsigned threads = 256, warps = threads / 32;
// Descriptions travel as kernel arguments; a launch with 4 KiB takes less time than one with more.
constexpr std::size_t chunks_a_launch = 64;

template <class Chunk>
struct Blocks {
  Chunk chunk[chunks_a_launch];
};
static_assert(sizeof(Blocks<FixedLengthEncode::Chunk>) <= 4000);

// Of encoding.
struct EncodeScratch {
  std::uint32_t *words, *offset;  // block words a block; one
  std::uint8_t* width;
};

// Where the words of each block begin, from the widths; their number in all. bad: a width that there is not. The block
// calls.
__device__ std::uint32_t scan_widths(const std::uint32_t* widths, std::uint32_t count, std::uint32_t* offset,
                                     bool& bad) {
  __shared__ std::uint32_t sums[block_warps];
  const std::uint32_t blocks = static_cast<std::uint32_t>(blocks_of(count));
  std::uint32_t all = 0, total;
  for (std::uint32_t first = 0; first < blocks; first += 4 * block_threads) {
    const std::uint32_t b = first + 4 * threadIdx.x, four = b < blocks ? widths[b / 4] : 0;
    std::uint32_t end[4], sum = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint32_t width = four >> (8 * k) & 255, n = values_of(count, b + k);
      bad = bad || !is_width(width) || (n == 0 && width > 0);
      end[k] = sum += words_of(width, n);
    }
    const std::uint32_t before = all + coding::block_scan(sum, sums, total);
    for (unsigned k = 0; k < 4; ++k)
      if (b + k < blocks) offset[b + k] = before + (k ? end[k - 1] : 0);
    all += total;
  }
  return all;
}

__global__ void __launch_bounds__(threads)
    quantize_kernel(const __grid_constant__ Blocks<FixedLengthEncode::Chunk> batch, EncodeScratch scratch) {
  const FixedLengthEncode::Chunk& c = batch.chunk[blockIdx.y];
  const unsigned lane = threadIdx.x % 32;
  const double inverse = 1 / c.step;
  const std::size_t end = width_bytes(c.count);  // blocks of no values have width 0
  for (std::size_t b = std::size_t{blockIdx.x} * warps + threadIdx.x / 32; b < end; b += gridDim.x * warps) {
    const std::uint32_t n = values_of(c.count, b);
    const std::size_t i = b * block + lane;
    const bool there = lane < n;
    float v = there ? c.in[i] : 0;
    if (there && c.error) v += c.before[i];
    std::uint32_t code = 0;
    const bool fits = __all_sync(all_lanes, !there || to_code(v, c.step, inverse, c.bound, code));
    const std::uint32_t bits = 32 - __clz(static_cast<int>(coding::warp_max(code)));
    const std::uint32_t width = n == 0 || (fits && bits < n) ? bits : raw;
    std::uint32_t word = __float_as_uint(v);
    for (std::uint32_t k = 0; width != raw && k < width; ++k) {
      const std::uint32_t plane = __ballot_sync(all_lanes, code >> k & 1);
      if (lane == k) word = plane;
    }
    if (lane < words_of(width, n)) scratch.words[(c.first_block + b) * block + lane] = word;
    if (lane == 0) scratch.width[c.first_block + b] = static_cast<std::uint8_t>(width);
    if (!there || !c.error) continue;
    const float lost = width == raw ? 0 : v - value_of(code, c.step);
    c.error[i] = lost - lost == 0 ? lost : 0;
  }
}

__global__ void __launch_bounds__(block_threads)
    size_kernel(const __grid_constant__ Blocks<FixedLengthEncode::Chunk> batch, EncodeScratch scratch,
                std::uint64_t* sizes) {
  const FixedLengthEncode::Chunk& c = batch.chunk[blockIdx.x];
  bool bad = false;
  const std::uint64_t words = scan_widths(reinterpret_cast<const std::uint32_t*>(scratch.width + c.first_block),
                                          c.count, scratch.offset + c.first_block, bad);
  if (threadIdx.x == 0) sizes[blockIdx.x] = c.count ? header_bytes(c.count) + 4 * words : 0;
}

// `first`: of the batch among all chunks.
__global__ void __launch_bounds__(threads)
    pack_kernel(const __grid_constant__ Blocks<FixedLengthEncode::Chunk> batch, EncodeScratch scratch,
                const std::uint64_t* sizes, std::uint32_t first, std::uint8_t* out) {
  const FixedLengthEncode::Chunk& c = batch.chunk[blockIdx.y];
  __shared__ unsigned long long of_warp[warps];
  unsigned long long at = 0;
  for (std::uint32_t k = threadIdx.x; k < first + blockIdx.y; k += threads) at += sizes[k];
  at = coding::warp_sum(at);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = at;
  __syncthreads();
  if (c.count == 0) return;
  at = 0;
  for (unsigned w = 0; w < warps; ++w) at += of_warp[w];
  auto* const head = reinterpret_cast<std::uint32_t*>(out + at);
  auto* const to = head + header_bytes(c.count) / 4;
  const std::size_t thread = std::size_t{blockIdx.x} * threads + threadIdx.x, all = std::size_t{gridDim.x} * threads;
  const auto* const widths = reinterpret_cast<const std::uint32_t*>(scratch.width + c.first_block);
  if (thread < 2) head[thread] = static_cast<std::uint32_t>(thread ? __double2hiint(c.step) : __double2loint(c.step));
  for (std::size_t k = thread; k < width_bytes(c.count) / 4; k += all) head[2 + k] = widths[k];
  constexpr unsigned lanes = 8;  // a block: most have few words
  for (std::size_t b = thread / lanes; b < blocks_of(c.count); b += all / lanes) {
    const std::uint32_t words = words_of(scratch.width[c.first_block + b], values_of(c.count, b)),
                        offset = scratch.offset[c.first_block + b];
    const std::uint32_t* const from = scratch.words + (c.first_block + b) * block;
    for (std::uint32_t w = threadIdx.x % lanes; w < words; w += lanes) to[offset + w] = from[w];
  }
}

__device__ double step_at(const std::uint32_t* words) {
  return __hiloint2double(static_cast<int>(words[1]), static_cast<int>(words[0]));
}

__global__ void __launch_bounds__(block_threads)
    check_kernel(const __grid_constant__ Blocks<FixedLengthDecode::Chunk> batch, std::uint32_t* offset,
                 std::uint32_t* is_good) {
  const FixedLengthDecode::Chunk& c = batch.chunk[blockIdx.x];
  const auto* const words = reinterpret_cast<const std::uint32_t*>(c.code);
  const std::uint64_t header = header_bytes(c.count);
  bool bad = c.bytes < header;
  if (!bad) {  // the whole block
    const double step = step_at(words);
    bad = !(step >= 0) || !(step - step == 0);
    const std::uint64_t all = scan_widths(words + 2, c.count, offset + c.first_block, bad);
    bad = bad || header + 4 * all != c.bytes;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) is_good[blockIdx.x] = !bad;
}

__global__ void __launch_bounds__(threads) unpack_kernel(const __grid_constant__ Blocks<FixedLengthDecode::Chunk> batch,
                                                         const std::uint32_t* offset, const std::uint32_t* is_good) {
  const FixedLengthDecode::Chunk& c = batch.chunk[blockIdx.y];
  const unsigned lane = threadIdx.x % 32;
  const auto* const from = reinterpret_cast<const std::uint32_t*>(c.code + header_bytes(c.count));
  const bool good = is_good[blockIdx.y];
  const double step = good ? step_at(reinterpret_cast<const std::uint32_t*>(c.code)) : 0;
  const std::size_t end = blocks_of(c.count);
  for (std::size_t b = std::size_t{blockIdx.x} * warps + threadIdx.x / 32; b < end; b += gridDim.x * warps) {
    const std::uint32_t n = values_of(c.count, b), width = good ? c.code[sizeof(double) + b] : 0;
    const std::uint32_t word = lane < words_of(width, n) ? from[offset[c.first_block + b] + lane] : 0;
    std::uint32_t code = 0;
    for (std::uint32_t k = 0; width != raw && k < width; ++k)
      code |= (__shfl_sync(all_lanes, word, k) >> lane & 1) << k;
    const float v = !good ? __uint_as_float(0x7fc00000u) : width == raw ? __uint_as_float(word) : value_of(code, step);
    float* const out = c.out + b * block + lane;
    if (lane < n) *out = c.add ? *out + v : v;
  }
}

// Calls f(batch, first chunk, chunks, blocks of a grid whose warps have about four blocks of values each).
template <class Chunk, class F>
void in_batches(const Chunk* chunks, std::size_t count, F f) {
  for (std::size_t first = 0; first < count; first += chunks_a_launch) {
    Blocks<Chunk> batch;
    const std::size_t n = count - first < chunks_a_launch ? count - first : chunks_a_launch;
    std::memcpy(batch.chunk, chunks + first, n * sizeof(Chunk));
    std::uint32_t most = 1;
    for (std::size_t k = 0; k < n; ++k) most = batch.chunk[k].count > most ? batch.chunk[k].count : most;
    f(batch, first, static_cast<unsigned>(n), cuda_blocks(most, block * warps * 4));
  }
}

void encode(const FixedLengthEncode& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  auto* const words = reinterpret_cast<std::uint32_t*>(job.scratch);
  std::uint32_t* const offset = words + job.blocks * block;
  const EncodeScratch scratch{words, offset, reinterpret_cast<std::uint8_t*>(offset + job.blocks)};
  in_batches(job.chunks, job.count, [&](const auto& batch, std::size_t first, unsigned n, unsigned grid) {
    quantize_kernel<<<dim3(grid, n), threads, 0, stream>>>(batch, scratch);
    check_launch("fixed_length, codes");
    size_kernel<<<n, block_threads, 0, stream>>>(batch, scratch, job.sizes + first);
    check_launch("fixed_length, sizes");
    pack_kernel<<<dim3(grid, n), threads, 0, stream>>>(batch, scratch, job.sizes, static_cast<std::uint32_t>(first),
                                                       job.out);
    check_launch("fixed_length, codes side by side");
  });
}

void decode(const FixedLengthDecode& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  auto* const offset = reinterpret_cast<std::uint32_t*>(job.scratch);
  in_batches(job.chunks, job.count, [&](const auto& batch, std::size_t first, unsigned n, unsigned grid) {
    std::uint32_t* const is_good = offset + job.blocks + first;
    check_kernel<<<n, block_threads, 0, stream>>>(batch, offset, is_good);
    check_launch("fixed_length, check");
    unpack_kernel<<<dim3(grid, n), threads, 0, stream>>>(batch, offset, is_good);
    check_launch("fixed_length, values");
  });
}

const Kernel<FixedLengthEncode>::Twin encoder(encode_fixed_length, encode);
const Kernel<FixedLengthDecode>::Twin decoder(decode_fixed_length, decode);

}  // namespace
}  // namespace trireme

// The CUDA twins. The threshold by three histograms; then every block counts what its tile has above and at it, one
// block turns the counts into places, and every block writes: so the order is that of the indices, and no atomic
// decides anything.
#include "comm/cuda_launch.h"
#include "framework/kernels/top_k.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, lanes = 32, warps = threads / lanes, rounds = top_k_tile / threads;
constexpr int bins = 2048, pick_threads = 1024;
constexpr unsigned most_blocks = 1056;

// Zero at first. `keep` and `key` as Threshold of the host: after digit d they are what d digits tell.
struct Found {
  unsigned key, equal, not_finite;
};
struct Scratch {
  unsigned* histogram;  // three of them
  Found* found;
  uint2* tiles;  // values above and at the threshold: of the tile, then of all before it

  explicit Scratch(void* memory)
      : histogram(static_cast<unsigned*>(memory)),
        found(reinterpret_cast<Found*>(histogram + 3 * bins)),
        tiles(reinterpret_cast<uint2*>(histogram + 3 * bins + 8)) {}
};

__device__ unsigned key_of(float v) { return min(__float_as_uint(v) & 0x7fffffffu, top_k_not_finite + 1); }

// Counts digit `digit` of the keys whose higher digits are those found; the first time it adds as well.
template <int digit>
__global__ void __launch_bounds__(threads) count_kernel(TopKJob job, Scratch s) {
  __shared__ unsigned mine[bins];
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) mine[b] = 0;
  __syncthreads();
  constexpr TopKDigit d = top_k_digits[digit];
  constexpr unsigned mask = (1u << d.bits) - 1,
                     known = digit == 0 ? 0 : 0x7fffffffu & ~((1u << (d.shift + d.bits)) - 1);
  const unsigned prefix = digit == 0 ? 0 : s.found->key;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < job.count; i += step) {
    if (digit == 0) job.rest[i] = job.before[i] + job.in[i];
    const unsigned key = key_of(job.rest[i]);
    if (digit == 0 && key >= top_k_not_finite) s.found->not_finite = 1;
    if ((key & known) == prefix) atomicAdd(mine + ((key >> d.shift) & mask), 1u);
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads)
    if (mine[b] > 0) atomicAdd(s.histogram + digit * bins + b, mine[b]);
}

// One block: the largest digit with at least `equal` values at or above it.
template <int digit>
__global__ void __launch_bounds__(pick_threads) pick_kernel(TopKJob job, Scratch s) {
  __shared__ unsigned above[bins + 1];  // values with this digit or a larger one
  const int t = static_cast<int>(threadIdx.x);
  const unsigned wanted = digit == 0 ? static_cast<unsigned>(job.keep) : s.found->equal;
  for (int b = t; b < bins; b += pick_threads) above[b] = s.histogram[digit * bins + b];
  if (t == 0) above[bins] = 0;
  __syncthreads();
  for (int reach = 1; reach < bins; reach *= 2) {
    unsigned more[bins / pick_threads];
    for (int k = 0; k < bins / pick_threads; ++k) {
      const int b = t + k * pick_threads;
      more[k] = b + reach < bins ? above[b + reach] : 0;
    }
    __syncthreads();
    for (int k = 0; k < bins / pick_threads; ++k) above[t + k * pick_threads] += more[k];
    __syncthreads();
  }
  for (int b = t; b < bins; b += pick_threads)
    if (above[b] >= wanted && above[b + 1] < wanted) {  // one bin
      s.found->key |= static_cast<unsigned>(b) << top_k_digits[digit].shift;
      s.found->equal = wanted - above[b + 1];
    }
}

// A warp's part of a tile: `rounds` times 32 neighbours.
struct Part {
  std::int64_t first;
  unsigned keys[rounds];

  __device__ Part(const TopKJob& job, int warp, int lane)
      : first(static_cast<std::int64_t>(blockIdx.x) * top_k_tile + warp * rounds * lanes + lane) {
    for (int r = 0; r < rounds; ++r) keys[r] = first + r * lanes < job.count ? key_of(job.rest[first + r * lanes]) : 0;
  }
  // Has this thread, in this round, a value above or at the threshold?
  __device__ bool above(int r, unsigned key) const { return keys[r] > key; }
  __device__ bool at(int r, unsigned key, std::int64_t count) const {
    return keys[r] == key && first + r * lanes < count;
  }
  // Of all lanes and rounds.
  __device__ uint2 counts(unsigned key, std::int64_t count) const {
    uint2 sum = make_uint2(0, 0);
    for (int r = 0; r < rounds; ++r) {
      sum.x += __popc(__ballot_sync(0xffffffffu, above(r, key)));
      sum.y += __popc(__ballot_sync(0xffffffffu, at(r, key, count)));
    }
    return sum;
  }
};

__global__ void __launch_bounds__(threads) tile_kernel(TopKJob job, Scratch s) {
  __shared__ uint2 of_warp[warps];
  const int warp = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const uint2 counts = Part(job, warp, lane).counts(s.found->key, job.count);
  if (lane == 0) of_warp[warp] = counts;
  __syncthreads();
  if (threadIdx.x > 0) return;
  uint2 sum = make_uint2(0, 0);
  for (int w = 0; w < warps; ++w) sum.x += of_warp[w].x, sum.y += of_warp[w].y;
  s.tiles[blockIdx.x] = sum;
}

// One block: what all tiles before each have.
__global__ void __launch_bounds__(pick_threads) scan_kernel(Scratch s, std::int64_t tiles) {
  __shared__ uint2 sums[pick_threads];
  const int t = static_cast<int>(threadIdx.x);
  uint2 before = make_uint2(0, 0);
  for (std::int64_t first = 0; first < tiles; first += pick_threads) {
    const uint2 own = first + t < tiles ? s.tiles[first + t] : make_uint2(0, 0);
    sums[t] = own;
    __syncthreads();
    for (int reach = 1; reach < pick_threads; reach *= 2) {
      const uint2 more = t >= reach ? sums[t - reach] : make_uint2(0, 0);
      __syncthreads();
      sums[t].x += more.x, sums[t].y += more.y;
      __syncthreads();
    }
    if (first + t < tiles) s.tiles[first + t] = make_uint2(before.x + sums[t].x - own.x, before.y + sums[t].y - own.y);
    before.x += sums[pick_threads - 1].x, before.y += sums[pick_threads - 1].y;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(threads) write_kernel(TopKJob job, Scratch s) {
  __shared__ uint2 of_warp[warps];
  const int warp = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned key = s.found->key, equal = s.found->equal;
  const bool wipe = job.forget || s.found->not_finite != 0;
  const Part part(job, warp, lane);
  const uint2 counts = part.counts(key, job.count);
  if (lane == 0) of_warp[warp] = counts;
  __syncthreads();
  uint2 before = s.tiles[blockIdx.x];
  for (int w = 0; w < warp; ++w) before.x += of_warp[w].x, before.y += of_warp[w].y;
  const unsigned lower = (1u << lane) - 1;
  for (int r = 0; r < rounds; ++r) {
    const bool above = part.above(r, key), at = part.at(r, key, job.count);
    const unsigned all_above = __ballot_sync(0xffffffffu, above), all_at = __ballot_sync(0xffffffffu, at);
    const unsigned mine_at = before.y + __popc(all_at & lower);  // values at the threshold before this one
    const std::int64_t i = part.first + r * lanes;
    if (above || (at && mine_at < equal)) {
      const unsigned place = before.x + __popc(all_above & lower) + (mine_at < equal ? mine_at : equal);
      job.index[place] = static_cast<std::int32_t>(i);
      job.value[place] = job.rest[i];
      job.rest[i] = 0;
    } else if (wipe && i < job.count) {
      job.rest[i] = 0;
    }
    before.x += __popc(all_above), before.y += __popc(all_at);
  }
}

void on_cuda(const TopKJob& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  const Scratch s(job.scratch);
  const unsigned tiles = cuda_blocks(static_cast<std::size_t>(job.count), top_k_tile);
  const unsigned blocks = tiles < most_blocks ? tiles : most_blocks;
  cudaMemsetAsync(job.scratch, 0, (3 * bins + 8) * sizeof(unsigned), stream);
  count_kernel<0><<<blocks, threads, 0, stream>>>(job, s);
  pick_kernel<0><<<1, pick_threads, 0, stream>>>(job, s);
  count_kernel<1><<<blocks, threads, 0, stream>>>(job, s);
  pick_kernel<1><<<1, pick_threads, 0, stream>>>(job, s);
  count_kernel<2><<<blocks, threads, 0, stream>>>(job, s);
  pick_kernel<2><<<1, pick_threads, 0, stream>>>(job, s);
  tile_kernel<<<tiles, threads, 0, stream>>>(job, s);
  scan_kernel<<<1, pick_threads, 0, stream>>>(s, tiles);
  write_kernel<<<tiles, threads, 0, stream>>>(job, s);
  check_launch("top_k");
}

// The value of element 0 meets the NaN of indices outside: neither may overwrite the other. (atomicAdd would flush
// subnormals.)
__device__ void add_to_first(float* out, float value) {
  auto* bits = reinterpret_cast<int*>(out);
  for (int seen = *bits, before = seen + 1; seen != before;) {
    before = seen;
    seen = atomicCAS(bits, before, __float_as_int(__int_as_float(before) + value));
  }
}

__global__ void __launch_bounds__(threads) add_kernel(AddAtJob job) {
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (k >= job.keep) return;
  const std::int64_t i = job.index[k];
  if (i > 0 && i < job.count)
    job.out[i] += job.value[k];
  else
    add_to_first(job.out, i == 0 ? job.value[k] : __int_as_float(0x7fc00000));
}

void add_on_cuda(const AddAtJob& job, Place place) {
  if (job.keep == 0) return;
  add_kernel<<<cuda_blocks(static_cast<std::size_t>(job.keep), threads), threads, 0, cuda_stream(place)>>>(job);
  check_launch("add_at");
}

const Kernel<TopKJob>::Twin selection(top_k, on_cuda);
const Kernel<AddAtJob>::Twin addition(add_at, add_on_cuda);

}  // namespace
}  // namespace trireme::kernels

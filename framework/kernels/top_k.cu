// The CUDA twins. The threshold by three histograms, of the first digit over all values, of the others over candidates:
// values whose first digit is the threshold's or larger, listed tile by tile in the order of their indices. Then every
// tile counts what it has above and at the threshold, one block turns the counts into places, and every tile writes: no
// atomic decides anything.
#include "comm/cuda_launch.h"
#include "framework/kernels/top_k.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, lanes = 32, warps = threads / lanes;
constexpr int vector = 4, rounds = top_k_tile / (threads * vector);  // of a warp over its part of a tile
constexpr int bins = 2048, scan_threads = 1024, scan_each = 16;
constexpr unsigned most_blocks = 1056, everyone = 0xffffffffu;

// Zero at first. `keep` and `key` as Threshold of the host: after digit d they are what d digits tell.
struct Found {
  unsigned key, equal, not_finite, blocks_done[3];
};
struct Scratch {
  unsigned* histogram;  // three of them
  Found* found;
  uint2* tiles;          // values above and at the threshold: of the tile, then of all before it
  unsigned* candidates;  // how many a tile has
  std::uint16_t* lists;  // their places in it

  Scratch(void* memory, std::size_t tile_count)
      : histogram(static_cast<unsigned*>(memory)),
        found(reinterpret_cast<Found*>(histogram + 3 * bins)),
        tiles(reinterpret_cast<uint2*>(histogram + 3 * bins + 8)),
        candidates(reinterpret_cast<unsigned*>(tiles + tile_count)),
        lists(reinterpret_cast<std::uint16_t*>(candidates + tile_count)) {}
};

__device__ unsigned key_of(float v) { return min(__float_as_uint(v) & 0x7fffffffu, top_k_not_finite + 1); }
__device__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % lanes; }
__device__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / lanes; }

// Four neighbours; zeros behind the end.
__device__ float4 load(const float* p, std::int64_t i, std::int64_t count, bool vectors) {
  if (vectors && i + vector <= count) return *reinterpret_cast<const float4*>(p + i);
  float v[vector] = {};
  for (int k = 0; k < vector && i + k < count; ++k) v[k] = p[i + k];
  return make_float4(v[0], v[1], v[2], v[3]);
}
__device__ void store(float* p, std::int64_t i, std::int64_t count, bool vectors, float4 value) {
  if (vectors && i + vector <= count) {
    *reinterpret_cast<float4*>(p + i) = value;
    return;
  }
  const float v[vector] = {value.x, value.y, value.z, value.w};
  for (int k = 0; k < vector && i + k < count; ++k) p[i + k] = v[k];
}

// By the last block to come: the largest digit with at least `equal` values at or above it.
template <int digit>
__device__ void pick(const TopKJob& job, const Scratch& s) {
  __shared__ unsigned sums[threads];
  __shared__ bool last;
  const int t = static_cast<int>(threadIdx.x);
  __threadfence();
  __syncthreads();
  if (t == 0) last = atomicAdd(s.found->blocks_done + digit, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  constexpr int each = bins / threads;
  unsigned h[each], own = 0;
  for (int k = 0; k < each; ++k) own += h[k] = __ldcg(s.histogram + digit * bins + t * each + k);
  sums[t] = own;
  __syncthreads();
  for (int reach = 1; reach < threads; reach *= 2) {
    const unsigned more = t + reach < threads ? sums[t + reach] : 0;
    __syncthreads();
    sums[t] += more;
    __syncthreads();
  }
  const unsigned wanted = digit == 0 ? static_cast<unsigned>(job.keep) : s.found->equal;
  __syncthreads();
  unsigned above = sums[t] - own;  // values with a larger digit
  for (int k = each - 1; k >= 0; above += h[k--])
    if (above < wanted && above + h[k] >= wanted) {  // one bin
      s.found->key |= static_cast<unsigned>(t * each + k) << top_k_digits[digit].shift;
      s.found->equal = wanted - above;
    }
}

// Adds, and counts first digits: twice, by lane, since most values have one of few.
__global__ void __launch_bounds__(threads) count_all_kernel(TopKJob job, Scratch s, bool vectors) {
  __shared__ unsigned mine[2 * bins];
  for (int b = static_cast<int>(threadIdx.x); b < 2 * bins; b += threads) mine[b] = 0;
  __syncthreads();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads * vector;
  bool finite = true;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x) * vector; i < job.count;
       i += step) {
    const float4 a = load(job.before, i, job.count, vectors), b = load(job.in, i, job.count, vectors);
    const float v[vector] = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
    store(job.rest, i, job.count, vectors, make_float4(v[0], v[1], v[2], v[3]));
    for (int k = 0; k < vector; ++k) {
      const unsigned key = key_of(v[k]);
      finite = finite && key < top_k_not_finite;
      if (i + k < job.count) atomicAdd(mine + 2 * (key >> top_k_digits[0].shift) + (threadIdx.x & 1), 1u);
    }
  }
  if (!finite) s.found->not_finite = 1;
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads)
    if (const unsigned sum = mine[2 * b] + mine[2 * b + 1]; sum > 0) atomicAdd(s.histogram + b, sum);
  pick<0>(job, s);
}

// A block lists the candidates of its tile.
__global__ void __launch_bounds__(threads) list_kernel(TopKJob job, Scratch s, bool vectors) {
  __shared__ unsigned of_warp[warps];
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const unsigned least = s.found->key;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * top_k_tile;
  const int first = warp * rounds * lanes * vector;
  unsigned found[rounds][vector], sum = 0;  // ballots
  for (int r = 0; r < rounds; ++r) {
    const std::int64_t i = tile + first + (r * lanes + lane) * vector;
    const float4 v = load(job.rest, i, job.count, vectors);
    const float each[vector] = {v.x, v.y, v.z, v.w};
    for (int k = 0; k < vector; ++k) {
      found[r][k] = __ballot_sync(everyone, i + k < job.count && key_of(each[k]) >= least);
      sum += __popc(found[r][k]);
    }
  }
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  unsigned before = 0, all = 0;
  for (int w = 0; w < warps; all += of_warp[w++])
    if (w < warp) before += of_warp[w];
  if (threadIdx.x == 0) s.candidates[blockIdx.x] = all;
  const unsigned lower = (1u << lane) - 1;
  for (int r = 0; r < rounds; ++r) {
    unsigned place = before;
    for (int k = 0; k < vector; ++k) place += __popc(found[r][k] & lower), before += __popc(found[r][k]);
    for (int k = 0; k < vector; ++k)
      if (found[r][k] >> lane & 1)
        s.lists[tile + place++] = static_cast<std::uint16_t>(first + (r * lanes + lane) * vector + k);
  }
}

// Every warp takes tiles: `each(tile)`.
template <class F>
__device__ void each_tile(std::int64_t tiles, F each) {
  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * warps + warp_of_thread(); t < tiles;
       t += static_cast<std::int64_t>(gridDim.x) * warps)
    each(t);
}
__device__ std::int64_t candidate(const Scratch& s, std::int64_t tile, unsigned k) {
  return tile * top_k_tile + s.lists[tile * top_k_tile + k];
}

// Counts digit `digit` of the candidates whose higher digits are those found.
template <int digit>
__global__ void __launch_bounds__(threads) count_kernel(TopKJob job, Scratch s, std::int64_t tiles) {
  __shared__ unsigned mine[bins];
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) mine[b] = 0;
  __syncthreads();
  constexpr TopKDigit d = top_k_digits[digit];
  constexpr unsigned mask = (1u << d.bits) - 1, known = 0x7fffffffu & ~((1u << (d.shift + d.bits)) - 1);
  const unsigned prefix = s.found->key;
  each_tile(tiles, [&](std::int64_t t) {
    for (unsigned k = lane_of_thread(), n = s.candidates[t]; k < n; k += lanes) {
      const unsigned key = key_of(job.rest[candidate(s, t, k)]);
      if ((key & known) == prefix) atomicAdd(mine + ((key >> d.shift) & mask), 1u);
    }
  });
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads)
    if (mine[b] > 0) atomicAdd(s.histogram + digit * bins + b, mine[b]);
  pick<digit>(job, s);
}

// What each tile has above and at the threshold.
__global__ void __launch_bounds__(threads) tile_kernel(TopKJob job, Scratch s, std::int64_t tiles) {
  const unsigned threshold = s.found->key;
  each_tile(tiles, [&](std::int64_t t) {
    uint2 sum = make_uint2(0, 0);
    const unsigned n = s.candidates[t];
    for (unsigned first = 0; first < n; first += lanes) {
      const unsigned k = first + lane_of_thread();
      const unsigned key = k < n ? key_of(job.rest[candidate(s, t, k)]) : 0;
      sum.x += __popc(__ballot_sync(everyone, key > threshold));
      sum.y += __popc(__ballot_sync(everyone, k < n && key == threshold));
    }
    if (lane_of_thread() == 0) s.tiles[t] = sum;
  });
}

__device__ uint2 plus(uint2 a, uint2 b) { return make_uint2(a.x + b.x, a.y + b.y); }

// One block: what all tiles before each have.
__global__ void __launch_bounds__(scan_threads) scan_kernel(Scratch s, std::int64_t tiles) {
  __shared__ uint2 sums[scan_threads];
  const int t = static_cast<int>(threadIdx.x);
  uint2 before = make_uint2(0, 0);
  for (std::int64_t first = 0; first < tiles; first += scan_threads * scan_each) {
    const std::int64_t mine = first + t * scan_each;
    uint2 own[scan_each], sum = make_uint2(0, 0);
    for (int k = 0; k < scan_each; ++k) {
      own[k] = mine + k < tiles ? s.tiles[mine + k] : make_uint2(0, 0);
      sum = plus(sum, own[k]);
    }
    sums[t] = sum;
    __syncthreads();
    for (int reach = 1; reach < scan_threads; reach *= 2) {
      const uint2 more = t >= reach ? sums[t - reach] : make_uint2(0, 0);
      __syncthreads();
      sums[t] = plus(sums[t], more);
      __syncthreads();
    }
    uint2 at = t > 0 ? plus(before, sums[t - 1]) : before;
    for (int k = 0; k < scan_each && mine + k < tiles; at = plus(at, own[k++])) s.tiles[mine + k] = at;
    before = plus(before, sums[scan_threads - 1]);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(threads) write_kernel(TopKJob job, Scratch s, std::int64_t tiles, bool vectors) {
  const unsigned threshold = s.found->key, equal = s.found->equal, lower = (1u << lane_of_thread()) - 1;
  const bool wipe = job.forget || s.found->not_finite != 0;
  each_tile(tiles, [&](std::int64_t t) {
    uint2 before = s.tiles[t];
    const unsigned n = s.candidates[t];
    for (unsigned first = 0; first < n; first += lanes) {
      const unsigned k = first + lane_of_thread();
      const std::int64_t i = k < n ? candidate(s, t, k) : 0;
      const float value = k < n ? job.rest[i] : 0;
      const bool above = k < n && key_of(value) > threshold, at = k < n && key_of(value) == threshold;
      const unsigned all_above = __ballot_sync(everyone, above), all_at = __ballot_sync(everyone, at);
      const unsigned mine_at = before.y + __popc(all_at & lower);  // values at the threshold before this one
      if (above || (at && mine_at < equal)) {
        const unsigned place = before.x + __popc(all_above & lower) + (mine_at < equal ? mine_at : equal);
        job.index[place] = static_cast<std::int32_t>(i);
        job.value[place] = value;
        job.rest[i] = 0;
      }
      before = plus(before, make_uint2(__popc(all_above), __popc(all_at)));
    }
    if (!wipe) return;
    __syncwarp();
    const std::int64_t first = t * top_k_tile, end = first + top_k_tile < job.count ? first + top_k_tile : job.count;
    for (std::int64_t i = first + lane_of_thread() * vector; i < end; i += lanes * vector)
      store(job.rest, i, end, vectors, make_float4(0, 0, 0, 0));
  });
}

void on_cuda(const TopKJob& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  const unsigned tiles = cuda_blocks(static_cast<std::size_t>(job.count), top_k_tile);
  const unsigned blocks = tiles < most_blocks ? tiles : most_blocks;
  const unsigned few = (tiles + warps - 1) / warps < most_blocks ? (tiles + warps - 1) / warps : most_blocks;
  const bool vectors = aligned(job.in, 16) && aligned(job.before, 16) && aligned(job.rest, 16);
  const Scratch s(job.scratch, tiles);
  cudaMemsetAsync(job.scratch, 0, (3 * bins + 8) * sizeof(unsigned), stream);
  count_all_kernel<<<blocks, threads, 0, stream>>>(job, s, vectors);
  list_kernel<<<tiles, threads, 0, stream>>>(job, s, vectors);
  count_kernel<1><<<few, threads, 0, stream>>>(job, s, tiles);
  count_kernel<2><<<few, threads, 0, stream>>>(job, s, tiles);
  tile_kernel<<<few, threads, 0, stream>>>(job, s, tiles);
  scan_kernel<<<1, scan_threads, 0, stream>>>(s, tiles);
  write_kernel<<<few, threads, 0, stream>>>(job, s, tiles, vectors);
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

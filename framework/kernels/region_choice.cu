// A thread a pixel or region, but: a warp finds the largest values of a region, bit by bit, and a block those keys of a
// picture that come first. Where a value lies in its region's list is left to chance; sums and counts do not show it.
#include "comm/cuda_launch.h"
#include "framework/kernels/region_choice.h"

namespace trireme::kernels {
namespace {

using namespace region_choice;

constexpr int threads = 256, warps = threads / 32, rivals = 1024, wide = 1024;

__device__ std::int64_t item_of_thread() { return static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; }

dim3 grid_of(std::int64_t items, std::int64_t batch, int each = threads) {
  return {cuda_blocks(static_cast<std::size_t>(items), static_cast<std::size_t>(each)), static_cast<unsigned>(batch)};
}

void zero(void* memory, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t result = cudaMemsetAsync(memory, 0, bytes, stream);
  if (result != cudaSuccess) throw CommError("region_choice", cudaGetErrorString(result));
}

__device__ std::uint32_t largest_of_warp(std::uint32_t v) {
  for (int step = 16; step > 0; step /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xFFFFFFFF, v, step);
    v = other > v ? other : v;
  }
  return v;
}

// All lanes call it; `there`: this one has a value.
__device__ void widen(std::uint32_t* extremes, float value, bool there) {
  const std::uint32_t bits = bits_of(value), most = largest_of_warp(there ? bits : 0),
                      least = largest_of_warp(there ? ~bits : 0);
  if (threadIdx.x % 32 != 0) return;
  atomicMax(extremes, most);
  atomicMax(extremes + 1, least);
}

__global__ void __launch_bounds__(threads) means_kernel(ComplexityJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y;
  float g = 0, noise = 0;
  if (p < job.pixels()) {
    means(job, b, p, g, noise);
    job.map(b, 0)[p] = g;
    job.map(b, 3)[p] = noise;
  }
  widen(job.extremes(b, 2), noise, p < job.pixels());
}

__global__ void __launch_bounds__(threads) stencil_kernel(ComplexityJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y;
  float scharr = 0, laplacian = 0;
  if (p < job.pixels()) {
    stencils(job, job.map(b, 0), p, scharr, laplacian);
    job.map(b, 1)[p] = scharr;
    job.map(b, 2)[p] = laplacian;
  }
  widen(job.extremes(b, 0), scharr, p < job.pixels());
  widen(job.extremes(b, 1), laplacian, p < job.pixels());
}

__global__ void __launch_bounds__(threads) combine_kernel(ComplexityJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y;
  if (p < job.pixels()) job.out[b * job.pixels() + p] = combined(job, b, p);
}

void complexity_cuda(const ComplexityJob& job, Place place) {
  if (job.batch * job.pixels() == 0) return;
  const cudaStream_t stream = cuda_stream(place);
  const dim3 grid = grid_of(job.pixels(), job.batch);
  zero(job.extremes(0, 0), static_cast<std::size_t>(job.batch) * 6 * sizeof(std::uint32_t), stream);
  means_kernel<<<grid, threads, 0, stream>>>(job);
  stencil_kernel<<<grid, threads, 0, stream>>>(job);
  combine_kernel<<<grid, threads, 0, stream>>>(job);
  check_launch("complexity");
}

__global__ void __launch_bounds__(threads) count_kernel(RegionPlacesJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y;
  if (p < job.pixels) job.whole(b, 3)[p] = atomicAdd(job.whole(b, 0) + job.labels[b * job.pixels + p], 1);
}

__global__ void __launch_bounds__(threads) begin_kernel(RegionPlacesJob job) {
  const std::int64_t r = item_of_thread(), b = blockIdx.y;
  if (r < job.regions[b]) job.whole(b, 2)[r] = atomicAdd(job.taken(b), job.whole(b, 0)[r]);
}

__global__ void __launch_bounds__(threads) list_kernel(RegionPlacesJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y;
  if (p >= job.pixels) return;
  const std::int32_t at = job.whole(b, 2)[job.labels[b * job.pixels + p]] + job.whole(b, 3)[p];
  job.whole(b, 4)[at] = static_cast<std::int32_t>(counted(job.complexity[b * job.pixels + p]));
}

// A lane's own values of a region's list, the first from a register.
template <class Visit>
__device__ void each_value(const std::uint32_t* values, std::int32_t n, std::uint32_t first, Visit visit) {
  const int lane = threadIdx.x % 32;
  if (lane < n) visit(first);
  for (std::int32_t i = lane + 32; i < n; i += 32) visit(values[i]);
}

__device__ std::int64_t sum_of_warp(std::int64_t v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFF, v, step);
  return v;
}

__global__ void __launch_bounds__(threads) score_kernel(RegionPlacesJob job) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / 32, b = blockIdx.y;
  if (r >= job.regions[b]) return;
  const std::int32_t n = job.whole(b, 0)[r];
  if (n == 0) return;
  const auto* values = reinterpret_cast<const std::uint32_t*>(job.whole(b, 4)) + job.whole(b, 2)[r];
  const int lane = threadIdx.x % 32;
  const std::uint32_t first = lane < n ? values[lane] : 0;
  const std::int64_t most = kept(n, job.q);
  std::uint32_t last = 0;  // the largest value that at least `most` reach
  for (std::uint32_t bit = 0x80000000U; bit > 0; bit >>= 1) {
    std::int64_t reached = 0;
    each_value(values, n, first, [&](std::uint32_t v) { reached += v >= (last | bit); });
    if (sum_of_warp(reached) >= most) last |= bit;
  }
  std::int64_t above = 0, sum = 0;
  each_value(values, n, first, [&](std::uint32_t v) {
    if (v > last) ++above, sum += static_cast<std::int64_t>(v);
  });
  above = sum_of_warp(above), sum = sum_of_warp(sum);
  if (lane == 0)
    job.score(b)[r] =
        static_cast<double>(sum + (most - above) * static_cast<std::int64_t>(last)) / static_cast<double>(most);
}

// Of a block's regions, how many of a thousand others come before.
__global__ void __launch_bounds__(threads) rank_kernel(RegionPlacesJob job) {
  __shared__ double theirs[rivals];
  const std::int64_t b = blockIdx.z, n = job.regions[b], first = static_cast<std::int64_t>(blockIdx.y) * rivals;
  if (static_cast<std::int64_t>(blockIdx.x) * threads >= n || first >= n) return;
  for (int i = threadIdx.x; i < rivals; i += threads) {
    const bool there = first + i < n && job.whole(b, 0)[first + i] > 0;
    theirs[i] = there ? job.score(b)[first + i] : -1;  // below all
  }
  __syncthreads();
  const std::int64_t own = item_of_thread();
  if (own >= n || job.whole(b, 0)[own] == 0) return;
  const double mine = job.score(b)[own];
  const int before_own = own >= first + rivals ? rivals : own > first ? static_cast<int>(own - first) : 0;
  std::int32_t before = 0;
  for (int i = 0; i < rivals; ++i) before += theirs[i] > mine || (theirs[i] == mine && i < before_own);
  if (before > 0) atomicAdd(job.whole(b, 1) + own, before);
}

__global__ void __launch_bounds__(threads) place_kernel(RegionPlacesJob job) {
  const std::int64_t p = item_of_thread(), b = blockIdx.y, at = b * job.pixels + p;
  if (p < job.pixels) job.places[at] = static_cast<float>(job.whole(b, 1)[job.labels[at]]);
}

void region_places_cuda(const RegionPlacesJob& job, Place place) {
  if (job.batch * job.pixels == 0) return;
  const cudaStream_t stream = cuda_stream(place);
  const dim3 grid = grid_of(job.pixels, job.batch);
  zero(job.whole(0, 0), static_cast<std::size_t>(2 * job.batch * job.pixels) * sizeof(std::int32_t), stream);
  zero(job.taken(0), static_cast<std::size_t>(job.batch) * sizeof(std::int32_t), stream);
  count_kernel<<<grid, threads, 0, stream>>>(job);
  begin_kernel<<<grid, threads, 0, stream>>>(job);
  list_kernel<<<grid, threads, 0, stream>>>(job);
  score_kernel<<<grid_of(job.pixels, job.batch, warps), threads, 0, stream>>>(job);
  const dim3 pairs(grid.x, cuda_blocks(static_cast<std::size_t>(job.pixels), rivals), static_cast<unsigned>(job.batch));
  rank_kernel<<<pairs, threads, 0, stream>>>(job);
  place_kernel<<<grid, threads, 0, stream>>>(job);
  check_launch("region_places");
}

// Of all threads of a wide block; `room` has a place for each warp, and is read until the next call's first barrier.
__device__ std::int32_t sum_of_block(std::int32_t v, std::int32_t* room) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFF, v, step);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
  __syncthreads();
  std::int32_t all = 0;
  for (int w = 0; w < wide / 32; ++w) all += room[w];
  return all;
}

// A block a picture.
__global__ void __launch_bounds__(wide) first_keys_kernel(FirstKeysJob job) {
  __shared__ std::int32_t room[2][wide / 32], below[wide], alike[wide];
  const int t = static_cast<int>(threadIdx.x);
  const std::int64_t n = job.n;
  const float* keys = job.keys + blockIdx.x * n;
  std::uint32_t last = 0;  // the largest that fewer than `count` keys are below: the last that is chosen
  int turn = 0;
  for (std::uint32_t bit = 0x80000000U; bit > 0; bit >>= 1, turn ^= 1) {
    std::int32_t less = 0;
    for (std::int64_t i = t; i < n; i += wide) less += ordered(keys[i]) < (last | bit);
    if (sum_of_block(less, room[turn]) < job.count) last |= bit;
  }
  const std::int64_t each = (n + wide - 1) / wide, first = t * each, end = first + each < n ? first + each : n;
  std::int32_t less = 0, same = 0;
  for (std::int64_t i = first; i < end; ++i) {
    const std::uint32_t key = ordered(keys[i]);
    less += key < last, same += key == last;
  }
  below[t] = less, alike[t] = same;
  __syncthreads();
  for (int reach = 1; reach < wide; reach *= 2) {
    const std::int32_t more = t >= reach ? below[t - reach] : 0, others = t >= reach ? alike[t - reach] : 0;
    __syncthreads();
    below[t] += more, alike[t] += others;
    __syncthreads();
  }
  const std::int64_t wanted = job.count - below[wide - 1];  // of those that are alike, the first
  std::int64_t before = alike[t] - same;
  std::int64_t* out = job.chosen + blockIdx.x * job.count + (below[t] - less) + (before < wanted ? before : wanted);
  for (std::int64_t i = first; i < end; ++i) {
    const std::uint32_t key = ordered(keys[i]);
    if (key < last || (key == last && before++ < wanted)) *out++ = i;
  }
}

void first_keys_cuda(const FirstKeysJob& job, Place place) {
  if (job.batch == 0) return;
  first_keys_kernel<<<static_cast<unsigned>(job.batch), wide, 0, cuda_stream(place)>>>(job);
  check_launch("first_keys");
}

const Kernel<ComplexityJob>::Twin complexity_twin(complexity, complexity_cuda);
const Kernel<RegionPlacesJob>::Twin places_twin(region_places, region_places_cuda);
const Kernel<FirstKeysJob>::Twin keys_twin(first_keys, first_keys_cuda);

}  // namespace
}  // namespace trireme::kernels

// Lookup: a group of lanes for each bag. Sort: places by their row (cub, stable, so that those of a row keep the order
// of the samples). Update: a group of lanes for each piece of a row sums it and, where it is all of the row,
// updates it; of longer rows a second launch adds the pieces. No atomics.
#include "comm/cuda_launch.h"
#include "framework/kernels/embedding.h"

#include <cub/device/device_radix_sort.cuh>

namespace trireme::kernels {
namespace {

constexpr unsigned threads = 128;
constexpr std::size_t alignment = 256;

// Values that travel together.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T of[n];
};

template <class T>
bool in_packs(const void* a, const void* b, const void* c, std::int64_t d) {
  constexpr std::size_t bytes = 16;
  return d % static_cast<std::int64_t>(bytes / sizeof(T)) == 0 && aligned(a, bytes) && aligned(b, bytes) &&
         aligned(c, bytes);
}

// ---- lookup ----

template <class T, int n>
__global__ void __launch_bounds__(threads)
    lookup_kernel(LookupJob<T> job, std::uint32_t packs, std::uint32_t b, std::uint32_t count) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (at >= job.bags.size() * packs) return;
  const std::uint32_t bag = static_cast<std::uint32_t>(at / packs), k = static_cast<std::uint32_t>(at % packs);
  const BagTable t = job.bags.tables[bag / b % count];
  const std::int32_t* ids = job.bags.of(bag / b / count, t, bag % b);
  const T* rows = job.rows + t.first * job.d + k * n;
  Pack<T, n> sum{};
  if (t.width == 1) {
    if (ids[0] >= 0) sum = *reinterpret_cast<const Pack<T, n>*>(rows + ids[0] * job.d);
  } else {
    const T share = share_of<T>(t, ids);
    for (std::int64_t w = 0; w < t.width; ++w) {
      if (ids[w] < 0) continue;
      const auto row = *reinterpret_cast<const Pack<T, n>*>(rows + ids[w] * job.d);
#pragma unroll
      for (int i = 0; i < n; ++i) sum.of[i] = fused(share, row.of[i], sum.of[i]);
    }
  }
  *reinterpret_cast<Pack<T, n>*>(job.out + bag * job.d + k * n) = sum;
}

template <class T, int n>
void lookup(const LookupJob<T>& job, Place place) {
  const auto packs = static_cast<std::uint32_t>(job.d / n);
  const std::size_t all = static_cast<std::size_t>(job.bags.size()) * packs;
  lookup_kernel<T, n><<<cuda_blocks(all, threads), threads, 0, cuda_stream(place)>>>(
      job, packs, static_cast<std::uint32_t>(job.bags.b), static_cast<std::uint32_t>(job.bags.count));
  check_launch("embedding lookup");
}

template <class T>
void lookup_on_cuda(const LookupJob<T>& job, Place place) {
  if (job.bags.size() == 0 || job.d == 0) return;
  if (in_packs<T>(job.rows, job.out, nullptr, job.d))
    lookup<T, 16 / sizeof(T)>(job, place);
  else
    lookup<T, 1>(job, place);
}

// ---- update ----

// Of `places` entries each: rows and bags, as they stand and sorted by row. longs: for each `piece` sorted places,
// where the row begins that has more than one piece and begins there; -1: none. parts: sums of whole pieces by where
// they begin, then those of last ones by where the one before begins.
struct Scratch {
  std::uint32_t *rows, *sorted_rows, *bags, *sorted_bags;
  std::int32_t* longs;
  void *parts, *sort;
  std::size_t sort_bytes, bytes;
};

inline __host__ __device__ std::int64_t tiles_of(std::int64_t places) { return places / piece + 1; }

// cub says in what it returns that memory is too small, and launches nothing then.
void check(cudaError_t result) {
  if (result != cudaSuccess) throw CommError("embedding update", cudaGetErrorString(result));
}

Scratch scratch_of(void* memory, std::int64_t places, std::int64_t d, std::size_t element) {
  Scratch s{};
  const auto take = [&](std::size_t bytes) {
    void* p = static_cast<std::uint8_t*>(memory) + s.bytes;
    s.bytes += (bytes + alignment - 1) / alignment * alignment;
    return p;
  };
  const auto n = static_cast<std::size_t>(places);
  for (std::uint32_t** p : {&s.rows, &s.sorted_rows, &s.bags, &s.sorted_bags})
    *p = static_cast<std::uint32_t*>(take(4 * n));
  s.longs = static_cast<std::int32_t*>(take(4 * static_cast<std::size_t>(tiles_of(places))));
  s.parts = take(2 * static_cast<std::size_t>(tiles_of(places) * d) * element);
  check(cub::DeviceRadixSort::SortPairs(nullptr, s.sort_bytes, s.rows, s.sorted_rows, s.bags, s.sorted_bags,
                                        static_cast<int>(places)));
  s.sort = take(s.sort_bytes);
  return s;
}

// The row of each place, or `none`, and the bag it belongs to.
__global__ void __launch_bounds__(threads) rows_kernel(Bags bags, std::uint32_t none, Scratch s) {
  const std::uint32_t at = blockIdx.x * threads + threadIdx.x;
  if (at >= bags.places()) return;
  if (at < tiles_of(bags.places())) s.longs[at] = -1;
  const auto b = static_cast<std::uint32_t>(bags.b), columns = static_cast<std::uint32_t>(bags.columns);
  const std::uint32_t block = at / (b * columns), inside = at % (b * columns), column = inside / b;
  std::uint32_t low = 0, high = static_cast<std::uint32_t>(bags.count);
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (bags.tables[middle].column <= column ? low : high) = middle;
  }
  const BagTable& t = bags.tables[low];
  const auto first = static_cast<std::uint32_t>(t.column) * b, width = static_cast<std::uint32_t>(t.width);
  const std::int32_t id = bags.ids[at];
  s.rows[at] = id >= 0 && t.trained ? static_cast<std::uint32_t>(t.first) + static_cast<std::uint32_t>(id) : none;
  s.bags[at] = (block * static_cast<std::uint32_t>(bags.count) + low) * b + (inside - first) / width;
}

// The first of sorted places [low, high) whose row is not below `row`.
__device__ std::uint32_t lower_bound(const std::uint32_t* rows, std::uint32_t low, std::uint32_t high,
                                     std::uint32_t row) {
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (rows[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// How many places the piece has that begins at `at`; 0: none does.
__device__ std::uint32_t piece_at(const std::uint32_t* rows, std::uint32_t at, std::uint32_t places,
                                  std::uint32_t none) {
  constexpr auto most = static_cast<std::uint32_t>(piece);
  if (at >= places || rows[at] == none) return 0;
  const std::uint32_t row = rows[at];
  if (at > 0 && rows[at - 1] == row) {
    if (at < most || rows[at - most] != row) return 0;
    if ((at - lower_bound(rows, 0, at - most, row)) % most != 0) return 0;
  }
  const std::uint32_t end = at + most < places ? at + most : places;
  return lower_bound(rows, at, end, row + 1) - at;
}

template <class T>
__device__ T* part_of(const UpdateJob<T>& job, const Scratch& s, std::int64_t at, bool whole) {
  const std::int64_t all = tiles_of(job.bags.places());
  return static_cast<T*>(s.parts) + (whole ? at / piece : all + at / piece - 1) * job.d;
}

// By all lanes of a group, whose sum is complete in `sum`, and by all threads of the block.
template <class T>
__device__ void update_row(const UpdateJob<T>& job, const RowStep<T>& step, std::int64_t row, const T* sum, bool mine,
                           unsigned lane, unsigned lanes) {
  const bool rowwise = job.rule == SparseRule::rowwise_adagrad;
  T now = 0;
  if (mine && rowwise) now = row_state(sum, job.d, job.state[row]);
  __syncthreads();  // everybody has read the state
  if (!mine) return;
  if (rowwise && lane == 0) job.state[row] = now;
  for (std::int64_t k = lane; k < job.d; k += lanes) {
    T* m = job.rule == SparseRule::adagrad ? job.state + row * job.d + k : nullptr;
    update_element(step, job.rule, sum[k], job.rows[row * job.d + k], m, now);
  }
}

// Elements k to k + n of the sum of `count` gradients, all of one table.
template <class T, int n>
__device__ Pack<T, n> sum_of(const UpdateJob<T>& job, const std::uint32_t* bags, std::uint32_t count, std::int64_t k) {
  const auto b = static_cast<std::uint32_t>(job.bags.b), tables = static_cast<std::uint32_t>(job.bags.count);
  const BagTable t = job.bags.tables[bags[0] / b % tables];
  Pack<T, n> g{};
#pragma unroll 4
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t bag = bags[i];
    const auto x = *reinterpret_cast<const Pack<T, n>*>(job.gradient + bag * job.d + k);
    const T share = t.mean ? share_of<T>(t, job.bags.of(bag / b / tables, t, bag % b)) : T(1);
#pragma unroll
    for (int j = 0; j < n; ++j) g.of[j] = fused(share, x.of[j], g.of[j]);
  }
  return g;
}

template <class T, int n>
__global__ void __launch_bounds__(threads) pieces_kernel(UpdateJob<T> job, Scratch s, RowStep<T> step, unsigned lanes) {
  if (job.skip && *job.skip != 0) return;
  if (job.device_lr) step.lr = static_cast<T>(*job.device_lr);
  extern __shared__ __align__(16) unsigned char memory[];
  const auto places = static_cast<std::uint32_t>(job.bags.places());
  const auto none = static_cast<std::uint32_t>(job.all_rows);
  const unsigned group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const std::uint32_t at = blockIdx.x * (threads / lanes) + group;
  const std::uint32_t count = group < threads / lanes ? piece_at(s.sorted_rows, at, places, none) : 0;
  const std::uint32_t row = count > 0 ? s.sorted_rows[at] : none;
  const bool begins = count > 0 && (at == 0 || s.sorted_rows[at - 1] != row);
  const bool alone = begins && (at + count >= places || s.sorted_rows[at + count] != row);
  T* sum = reinterpret_cast<T*>(memory) + group * job.d;
  T* to = alone ? sum : part_of(job, s, at, count == piece);
  for (std::int64_t k = lane * n; count > 0 && k < job.d; k += lanes * n) {
    const Pack<T, n> g = sum_of<T, n>(job, s.sorted_bags + at, count, k);
    for (int j = 0; j < n; ++j) to[k + j] = g.of[j];
  }
  if (begins && !alone && lane == 0) s.longs[at / piece] = static_cast<std::int32_t>(at);
  __syncthreads();
  update_row(job, step, row, sum, alone, lane, lanes);
}

// A block for each tile in which a row of several pieces may begin.
template <class T>
__global__ void __launch_bounds__(threads) longs_kernel(UpdateJob<T> job, Scratch s, RowStep<T> step) {
  if (job.skip && *job.skip != 0) return;
  if (job.device_lr) step.lr = static_cast<T>(*job.device_lr);
  extern __shared__ __align__(16) unsigned char memory[];
  const std::int32_t begin = s.longs[blockIdx.x];
  if (begin < 0) return;
  const auto places = static_cast<std::uint32_t>(job.bags.places());
  const auto at = static_cast<std::uint32_t>(begin), row = s.sorted_rows[at];
  const std::uint32_t count = lower_bound(s.sorted_rows, at, places, row + 1) - at;
  const std::uint32_t whole = count / piece, rest = count % piece;
  T* sum = reinterpret_cast<T*>(memory);
  for (std::int64_t k = threadIdx.x; k < job.d; k += threads) {
    T g = part_of(job, s, at, true)[k];
#pragma unroll 8
    for (std::uint32_t p = 1; p < whole; ++p) g += part_of(job, s, at + p * piece, true)[k];
    if (rest > 0) g += part_of(job, s, at + whole * piece, false)[k];
    sum[k] = g;
  }
  __syncthreads();
  update_row(job, step, row, sum, true, threadIdx.x, threads);
}

// Dynamic shared memory of a kernel that sums `rows` rows at a time.
template <class T, class F>
std::size_t shared_of(std::int64_t d, unsigned rows, F* kernel) {
  const std::size_t bytes = rows * static_cast<std::size_t>(d) * sizeof(T);
  if (!allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes, "embedding update"))
    throw UsageError("model.dim", "is more than a GPU's sparse update holds", "use a smaller one, or device=cpu");
  return bytes;
}

template <class T, int n>
void sum_pieces(const UpdateJob<T>& job, const Scratch& s, const RowStep<T>& step, Place place) {
  const auto packs = static_cast<unsigned>(job.d / n);
  const unsigned lanes = packs < threads ? packs : threads, groups = threads / lanes;
  const auto places = static_cast<std::size_t>(job.bags.places());
  const std::size_t shared = shared_of<T>(job.d, groups, pieces_kernel<T, n>);
  pieces_kernel<T, n><<<cuda_blocks(places, groups), threads, shared, cuda_stream(place)>>>(job, s, step, lanes);
  check_launch("embedding update");
}

int bits_of(std::uint64_t most) {
  int bits = 1;
  while (bits < 32 && most >> bits) ++bits;
  return bits;
}

void sort_on_cuda(const SortJob& job, Place place) {
  const std::int64_t places = job.bags.places();
  if (places == 0 || job.d == 0) return;
  Scratch s = scratch_of(job.scratch, places, job.d, job.element);
  const cudaStream_t stream = cuda_stream(place);
  rows_kernel<<<cuda_blocks(static_cast<std::size_t>(places), threads), threads, 0, stream>>>(
      job.bags, static_cast<std::uint32_t>(job.all_rows), s);
  check_launch("embedding update");
  check(cub::DeviceRadixSort::SortPairs(s.sort, s.sort_bytes, s.rows, s.sorted_rows, s.bags, s.sorted_bags,
                                        static_cast<int>(places), 0, bits_of(static_cast<std::uint64_t>(job.all_rows)),
                                        stream));
}

template <class T>
void update_on_cuda(const UpdateJob<T>& job, Place place) {
  const std::int64_t places = job.bags.places();
  if (places == 0 || job.d == 0) return;
  const Scratch s = scratch_of(job.scratch, places, job.d, sizeof(T));
  const RowStep<T> step{static_cast<T>(job.lr), static_cast<T>(job.eps)};
  if (in_packs<T>(job.gradient, nullptr, nullptr, job.d))
    sum_pieces<T, 16 / sizeof(T)>(job, s, step, place);
  else
    sum_pieces<T, 1>(job, s, step, place);
  const std::size_t shared = shared_of<T>(job.d, 1, longs_kernel<T>);
  longs_kernel<T><<<static_cast<unsigned>(tiles_of(places)), threads, shared, cuda_stream(place)>>>(job, s, step);
  check_launch("embedding update");
}

void scratch_on_cuda(const UpdateScratchJob& job, Place) {
  *job.bytes = scratch_of(nullptr, job.places, job.d, job.element).bytes;
}

const Kernel<UpdateScratchJob>::Twin scratch(embedding_update_scratch, scratch_on_cuda);
const Kernel<SortJob>::Twin sort(embedding_sort, sort_on_cuda);
const Kernel<LookupJob<float>>::Twin lookup_f32(embedding_lookup_f32, lookup_on_cuda<float>);
const Kernel<LookupJob<double>>::Twin lookup_f64(embedding_lookup_f64, lookup_on_cuda<double>);
const Kernel<UpdateJob<float>>::Twin update_f32(embedding_update_f32, update_on_cuda<float>);
const Kernel<UpdateJob<double>>::Twin update_f64(embedding_update_f64, update_on_cuda<double>);

}  // namespace
}  // namespace trireme::kernels

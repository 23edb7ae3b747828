// A hash table of (table, id) in device memory. Samples of a warp that ask for one row are one entry: the rows that
// nearly all samples ask for would otherwise be as many atomics on one word. First by minimum and counts by addition of
// integers: the order of threads changes nothing.
#include "comm/cuda_launch.h"
#include "framework/kernels/equal_ids.h"

namespace trireme::kernels {
namespace {

constexpr unsigned threads = 256, all_lanes = 0xffffffffu;
constexpr unsigned long long empty = ~0ull;  // what memset leaves; `more` then counts from -1

struct Slot {
  unsigned long long key;
  std::uint32_t first, more;  // the first sample; how many more than it
};
static_assert(sizeof(Slot) == 16, "equal_ids_scratch");

struct Asked {
  std::uint32_t unit, sample;  // block and table; sample
  std::int32_t id;             // -1: none
  bool bag;                    // of a table of bags
};

__device__ Asked asked(const Bags& bags, std::uint32_t at) {
  const auto b = static_cast<std::uint32_t>(bags.b), count = static_cast<std::uint32_t>(bags.count);
  Asked a{at / b, at % b, -1, false};
  const BagTable t = bags.tables[a.unit % count];
  const std::int32_t* ids = bags.of(a.unit / count, t, a.sample);
  a.bag = t.width > 1;
  a.id = a.bag ? asks(ids, t.width) - 1 : ids[0];
  return a;
}

__device__ std::uint32_t slot_of(Slot* slots, unsigned long long key, std::uint32_t mask) {
  std::uint32_t at = mixed(key) & mask;
  while (true) {
    const unsigned long long there = atomicCAS(&slots[at].key, empty, key);
    if (there == empty || there == key) return at;
    at = (at + 1) & mask;
  }
}

// Leaves in `first` the slot of a sample that has one.
__global__ void __launch_bounds__(threads) insert_kernel(EqualIdsJob job, std::uint32_t mask) {
  const std::uint32_t at = blockIdx.x * threads + threadIdx.x, lane = threadIdx.x % 32;
  const bool is = at < job.bags.size();
  const Asked a = is ? asked(job.bags, at) : Asked{0, 0, -1, false};
  const bool alone = a.bag || a.id < 0;
  const unsigned long long key = alone ? empty : static_cast<unsigned long long>(a.unit) << 32 | a.id;
  const unsigned peers = __match_any_sync(all_lanes, key);
  const unsigned leader = __ffs(peers) - 1;
  std::uint32_t slot = 0;
  if (!alone && lane == leader) {  // its sample is the first of them
    auto* slots = static_cast<Slot*>(job.scratch);
    slot = slot_of(slots, key, mask);
    atomicMin(&slots[slot].first, a.sample);
    atomicAdd(&slots[slot].more, __popc(peers));
  }
  slot = __shfl_sync(all_lanes, slot, leader);
  if (!is) return;
  const std::int64_t row = a.unit % job.bags.count * job.bags.b + a.sample;
  job.first[at] = alone ? (a.id < 0 ? -1 : static_cast<std::int32_t>(row)) : static_cast<std::int32_t>(slot);
  if (alone) job.times[at] = a.id < 0 ? 0 : 1;
}

__global__ void __launch_bounds__(threads) find_kernel(EqualIdsJob job) {
  const std::uint32_t at = blockIdx.x * threads + threadIdx.x;
  if (at >= job.bags.size()) return;
  const Asked a = asked(job.bags, at);
  if (a.bag || a.id < 0) return;
  const Slot s = static_cast<const Slot*>(job.scratch)[job.first[at]];
  job.first[at] = static_cast<std::int32_t>(a.unit % job.bags.count * job.bags.b + s.first);
  job.times[at] = s.first == a.sample ? static_cast<float>(s.more + 1) : 0;
}

void on_cuda(const EqualIdsJob& job, Place place) {
  const std::int64_t bags = job.bags.size(), slots = equal_ids_slots(bags);
  if (bags == 0) return;
  const cudaStream_t stream = cuda_stream(place);
  const cudaError_t result = cudaMemsetAsync(job.scratch, 0xff, static_cast<std::size_t>(equal_ids_scratch(bags)), stream);
  if (result != cudaSuccess) throw CommError("equal ids", cudaGetErrorString(result));
  const unsigned blocks = cuda_blocks(static_cast<std::size_t>(bags), threads);
  insert_kernel<<<blocks, threads, 0, stream>>>(job, static_cast<std::uint32_t>(slots - 1));
  find_kernel<<<blocks, threads, 0, stream>>>(job);
  check_launch("equal ids");
}

const Kernel<EqualIdsJob>::Twin registered(equal_ids, on_cuda);

}  // namespace
}  // namespace trireme::kernels

#include "comm/mpi/shm_channel.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::size_t line = 64;
constexpr std::size_t page = 4096;
// Up to here the whole buffer travels with the arrival: one synchronisation instead of three.
constexpr std::size_t small_limit = 16u << 10;
// Staging of a rank in one round: large enough to hide the synchronisation, small enough for the second-level
// cache.
constexpr std::size_t round_bytes = 128u << 10;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

struct Layout {
  std::size_t small, part, slot, control, block;
  Layout(int size, std::size_t chunk_limit) {
    const std::size_t n = static_cast<std::size_t>(size);
    // all_to_all puts its offsets into the payload
    small = std::max(std::min(small_limit, chunk_limit), round_up((n + 1) * sizeof(std::uint64_t), line));
    part = std::max(std::min(std::max(round_bytes, n * (round_bytes / 8)), chunk_limit) / n / line * line, line);
    slot = round_up(sizeof(Arrival) + small, line);
    control = round_up(2 * slot + 5 * line, page);  // slots, three progress counters, claims, done
    block = round_up(control + static_cast<std::size_t>(ShmChannel::ring) * part * n, page);
  }
};

}  // namespace

std::uint32_t TaggedCounter::take(std::uint32_t tag, std::uint32_t limit) {
  std::uint64_t word = word_.load(std::memory_order_acquire);
  for (;;) {
    const std::uint32_t next = word >> 32 == tag ? static_cast<std::uint32_t>(word) : 0;
    if (next >= limit) return limit;
    if (word_.compare_exchange_weak(word, std::uint64_t{tag} << 32 | (next + 1), std::memory_order_acq_rel))
      return next;
  }
}

std::uint32_t TaggedCounter::value(std::uint32_t tag) const {
  const std::uint64_t word = word_.load(std::memory_order_acquire);
  return word >> 32 == tag ? static_cast<std::uint32_t>(word) : 0;
}

std::size_t ShmChannel::segment_bytes(int size, std::size_t chunk_limit) {
  return Layout(size, chunk_limit).block * static_cast<std::size_t>(size);
}

ShmChannel::ShmChannel(SharedSegment segment, Member me, std::size_t chunk_limit)
    : segment_(std::move(segment)), me_(me) {
  const Layout layout(me.size, chunk_limit);
  small_ = layout.small;
  part_ = layout.part;
  block_ = layout.block;
}

std::byte* ShmChannel::block(int rank) const { return segment_.base() + static_cast<std::size_t>(rank) * block_; }

Arrival& ShmChannel::arrival(int rank, std::uint64_t seq) const {
  return *reinterpret_cast<Arrival*>(block(rank) + (seq & 1) * round_up(sizeof(Arrival) + small_, line));
}

std::atomic<std::uint64_t>& ShmChannel::progress(int rank, Progress which) const {
  std::byte* counters = block(rank) + 2 * round_up(sizeof(Arrival) + small_, line);
  return *reinterpret_cast<std::atomic<std::uint64_t>*>(counters + which * line);
}

TaggedCounter& ShmChannel::claims(int slice) const {
  return *reinterpret_cast<TaggedCounter*>(block(slice) + 2 * round_up(sizeof(Arrival) + small_, line) + 3 * line);
}

TaggedCounter& ShmChannel::done() const {
  return *reinterpret_cast<TaggedCounter*>(block(0) + 2 * round_up(sizeof(Arrival) + small_, line) + 4 * line);
}

std::byte* ShmChannel::staging(int rank, std::uint64_t round) const {
  const std::size_t control = round_up(2 * round_up(sizeof(Arrival) + small_, line) + 5 * line, page);
  return block(rank) + control + (round % ring) * staging_bytes();
}

void ShmChannel::add(const std::shared_ptr<SharedRegion>& region) {
  std::lock_guard lock(regions_mutex_);
  std::erase_if(regions_, [](auto& r) { return r.expired(); });
  regions_.push_back(region);
}

std::shared_ptr<SharedRegion> ShmChannel::find(const void* p, std::size_t bytes) {
  std::lock_guard lock(regions_mutex_);
  for (auto& weak : regions_)
    if (auto region = weak.lock(); region && region->holds(p, bytes)) return region;
  return nullptr;
}

}  // namespace trireme

// What the ranks of one group on one node share: a control block, a small slot pair and a staging ring for
// each rank, and the regions that `allocate` gave out.
#pragma once
#include "comm/engine/arguments.h"
#include "comm/mpi/shared_segment.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace trireme {

// What a rank says when it starts collective number `seq`, followed in memory by a small payload. There are
// two a rank, used in turn: who starts number s has completed s-1, for which everybody had to start s-1,
// hence complete s-2.
struct Arrival {
  std::atomic<std::uint64_t> seq;
  std::uint64_t signature;   // operation, dtype, reduction, root: equal on all ranks
  std::uint64_t count;       // elements: equal on all ranks (but for all_to_all)
  std::uint64_t offset;      // of the rank's buffer in its part of `region`
  const std::byte* address;  // of the rank's buffer in its process
  std::uint32_t region;      // 0: private memory
  std::uint32_t rounds;      // all_to_all only
  std::byte* payload() { return reinterpret_cast<std::byte*>(this + 1); }
};
static_assert(sizeof(Arrival) == 48 && std::atomic<std::uint64_t>::is_always_lock_free);

// A number that belongs to one collective: any rank may take the next one. An older tag counts as zero.
class TaggedCounter {
 public:
  // The next number below `limit`, or `limit`.
  std::uint32_t take(std::uint32_t tag, std::uint32_t limit);
  std::uint32_t value(std::uint32_t tag) const;

 private:
  std::atomic<std::uint64_t> word_;
};

// Memory made by one allocate(): every rank's part, mapped by every rank.
class SharedRegion {
 public:
  SharedRegion(SharedSegment segment, std::uint32_t id, std::size_t part_bytes, int rank)
      : segment_(std::move(segment)), id_(id), part_(part_bytes), rank_(rank) {}
  std::uint32_t id() const { return id_; }
  std::byte* part(int rank) const { return segment_.base() + static_cast<std::size_t>(rank) * part_; }
  bool holds(const void* p, std::size_t bytes) const {
    const std::byte* begin = part(rank_);
    return p >= begin && bytes <= part_ && at(p, 0) <= begin + (part_ - bytes);
  }

 private:
  SharedSegment segment_;
  std::uint32_t id_;
  std::size_t part_;
  int rank_;
};

class ShmChannel {
 public:
  static constexpr int ring = 5;  // staging buffers a rank: shm_operation.h says why
  static std::size_t segment_bytes(int size, std::size_t chunk_limit);
  ShmChannel(SharedSegment segment, Member me, std::size_t chunk_limit);

  Arrival& arrival(int rank, std::uint64_t seq) const;
  std::size_t small_bytes() const { return small_; }
  // The progress of a rank: staged rounds copied in, staged rounds reduced, number of the last finished
  // collective.
  enum Progress { copied, reduced, finished };
  std::atomic<std::uint64_t>& progress(int rank, Progress which) const;
  TaggedCounter& claims(int slice) const;           // chunks of a slice that somebody works on
  TaggedCounter& done() const;                      // chunks that are complete
  std::size_t part_bytes() const { return part_; }  // staging for one peer in one round; a multiple of 64
  std::byte* staging(int rank, std::uint64_t round) const;
  std::size_t staging_bytes() const { return part_ * static_cast<std::size_t>(me_.size); }

  // The processes of the ranks, once every rank may read the memory of every other; empty: it may not.
  std::vector<int> processes;

  void add(const std::shared_ptr<SharedRegion>& region);
  std::shared_ptr<SharedRegion> find(const void* p, std::size_t bytes);
  std::uint32_t next_region_id() { return ++last_region_; }

  std::uint64_t seq = 0;     // of the last collective started here
  std::uint64_t rounds = 0;  // staged rounds of all collectives before it

 private:
  std::byte* block(int rank) const;

  SharedSegment segment_;
  Member me_;
  std::size_t small_, part_, block_;
  std::uint32_t last_region_ = 0;
  std::mutex regions_mutex_;
  std::vector<std::weak_ptr<SharedRegion>> regions_;
};

}  // namespace trireme

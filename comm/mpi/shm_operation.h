// The course of every shared-memory collective: arrive, then one of four ways that all ranks choose alike:
//   small   the data came with the arrivals; the result is computed from there;
//   direct  every rank's buffer lies in the same SharedRegion: work on the peers' memory;
//   read    the same for an operation that only copies, with the kernel reading the peers' private memory;
//   staged  rounds through the staging rings.
#pragma once
#include "comm/mpi/group.h"
#include "comm/mpi/peer_memory.h"

#include <algorithm>
#include <optional>

namespace trireme {

class ShmOperation : public Operation {
 public:
  Step progress() final;

 protected:
  ShmOperation(MpiGroup& group, Collective kind, DType dtype, Op op, int root, std::size_t count);

  // The buffer that peers work on (direct) or read; set by the constructor of the operation.
  void share(const void* data, std::size_t bytes);
  virtual bool small() const = 0;  // equal on all ranks; before arrival: does this rank publish its payload?
  virtual void publish(Arrival& mine) = 0;
  virtual void arrived() {}  // everybody's arrival is readable, also below
  virtual void finish_small() = 0;

  virtual Step direct() = 0;                       // complete when this rank may go on
  virtual bool can_read() const { return false; }  // equal on all ranks: direct() needs no more than source()

  // Staged rounds. copy_in(k) fills this rank's ring; once all have, combine(k) reads the peers' rings. With
  // `two_phases`, combine() leaves results in the ring, and once all have, copy_out(k) reads those.
  // copy_in runs one round ahead and copy_out one behind, so that nobody waits for a peer at equal speed. A
  // rank fills round k+1 after it saw all peers fill k-1, which each did after its copy_out(k-4): five
  // buffers suffice.
  virtual std::uint64_t round_count() const = 0;
  virtual void copy_in(std::uint64_t round) = 0;
  virtual void combine(std::uint64_t round) = 0;
  virtual void copy_out(std::uint64_t) {}
  bool two_phases = false;

  int rank() const { return g.me.rank; }
  int size() const { return g.me.size; }
  Arrival& arrival(int r) const { return c.arrival(r, seq_); }
  std::uint32_t tag() const { return static_cast<std::uint32_t>(seq_); }
  // A peer's shared buffer (direct only).
  std::byte* shared(int r) const { return region_->part(r) + offsets_[static_cast<std::size_t>(r)]; }
  // A peer's buffer (direct and read).
  PeerBytes source(int r) const {
    const auto i = static_cast<std::size_t>(r);
    return addresses_.empty() ? PeerBytes{shared(r)} : PeerBytes{addresses_[i], c.processes[i], r};
  }
  // This rank's piece for `to` in its ring, or the piece of `from` for `to`.
  std::byte* staged(int from, int to, std::uint64_t round) const {
    return c.staging(from, round) + static_cast<std::size_t>(to) * c.part_bytes();
  }
  bool all_reached(ShmChannel::Progress which, std::uint64_t value);
  void reach(ShmChannel::Progress which, std::uint64_t value) {
    c.progress(rank(), which).store(value, std::memory_order_release);
  }
  bool all_finished() { return all_reached(ShmChannel::finished, seq_); }
  void finish() { reach(ShmChannel::finished, seq_); }
  template <class F>
  void peers(F&& f) const {
    for (int i = 1; i < size(); ++i) f((rank() + i) % size());
  }

  MpiGroup& g;
  ShmChannel& c;

 private:
  void arrive();
  void compare(const Arrival& theirs, int r) const;
  Step staged_round();

  enum class Phase { start, arriving, direct, staged } phase_ = Phase::start;
  const Collective kind_;
  const DType dtype_;
  const std::uint64_t signature_, count_;
  std::uint64_t seq_ = 0;
  int seen_ = 0;  // ranks already found where all_reached or arrival waits for them
  std::shared_ptr<SharedRegion> region_;
  std::uint64_t offset_ = 0;
  const std::byte* address_ = nullptr;
  std::vector<std::uint64_t> offsets_;       // direct
  std::vector<const std::byte*> addresses_;  // read
  std::uint64_t round_ = 0, rounds_ = 0, base_ = 0;
  enum class Stage { fill, combine, empty } stage_ = Stage::fill;
};

// Copies done a bounded piece at a time.
class CopyList {
 public:
  void add(void* to, PeerBytes from, std::size_t bytes) {
    if (bytes > 0 && (from.process != 0 || to != from.data)) copies_.push_back({at(to, 0), from, bytes});
    whole_ += bytes;
  }
  bool empty() const { return next_ == copies_.size(); }
  bool step();                                           // false: nothing could be copied
  int rank() const { return copies_[next_].from.rank; }  // whose bytes are next

 private:
  struct Copy {
    std::byte* to;
    PeerBytes from;
    std::size_t bytes;
  };
  std::vector<Copy> copies_;
  std::size_t next_ = 0, whole_ = 0;
};

// An operation whose result is made of pieces of the peers' buffers.
class CopyOperation : public ShmOperation {
 protected:
  using ShmOperation::ShmOperation;
  virtual void list(CopyList& copies) const = 0;
  // What travels with the arrival: less where peers can read the rest themselves.
  std::size_t small_bytes() const {
    return c.processes.empty() ? c.small_bytes() : std::min<std::size_t>(c.small_bytes(), 8u << 10);
  }
  virtual bool is_read() const { return true; }  // peers read this rank's buffer: it waits for them

 private:
  Step direct() final;

  CopyList copies_;
  bool listed_ = false;
  std::optional<std::chrono::steady_clock::time_point> unreadable_;  // since when
};

}  // namespace trireme

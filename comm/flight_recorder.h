// What one rank remembers of its collectives: for each communicator that is Traced a log of the last 256
// calls, and in the FlightRecorder all logs of the rank. Any thread may read.
#pragma once
#include "comm/buffer.h"
#include "comm/call_site.h"
#include "comm/work.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace trireme {

// Totals of one rank. Bytes a rank sends, by formula for n ranks and a buffer of B bytes: all_reduce 2(n-1)/n
// B, reduce_scatter and all_gather (n-1)/n of the whole buffer, all_to_all what goes to others, broadcast B.
struct CommStats {
  std::uint64_t calls = 0;
  std::uint64_t bytes = 0;
  std::uint64_t blocked_ns = 0;  // host time inside wait(): communication that computation did not hide
  void operator+=(const CommStats& other) {
    calls += other.calls;
    bytes += other.bytes;
    blocked_ns += other.blocked_ns;
  }
};

// What one log counts, and the tallies that are parts of it: a part that has ended stays counted. Any thread.
class CommTally {
 public:
  CommStats sum() const;  // of this and of all parts
  void add(std::shared_ptr<CommTally> part);
  bool holds(const CommTally& other) const;  // as itself or among its parts

 private:
  friend class CommLog;
  void fold() const;  // what nobody adds to any more becomes a number

  mutable std::mutex mutex_;  // taken before that of a part; also what a log locks
  CommStats own_;
  mutable CommStats gone_;
  mutable std::vector<std::shared_ptr<CommTally>> parts_;
};

// One call. Times are of the steady clock; end_ns is 0 until the end was seen by wait() or done().
struct CommCall {
  std::uint64_t sequence = 0;  // from 1
  const char* name = "";
  std::uint64_t bytes = 0;  // sent, see CommStats
  std::int64_t begin_ns = 0, end_ns = 0;
  std::uint64_t count = 0;  // elements of the buffer that all ranks give alike (all_to_all: that it sends)
  DType dtype = DType::u8;
  CallLabel site = {};
  bool complete = false;   // also where nobody has looked for the end
  bool continued = false;  // posted by a then(): its place among the other calls may differ between ranks
};

class CommLog {
 public:
  static constexpr std::size_t ring_size = 256;
  // rank, size: in this communicator.
  CommLog(std::string name, int rank, int size) : name(std::move(name)), rank(rank), size(size) {}
  const std::string name;
  const int rank, size;

  // Entering a call; `call` has neither sequence nor end yet. Returns the sequence.
  std::uint64_t begin(CommCall call);
  void posted(std::uint64_t sequence, const std::shared_ptr<Work::State>& state);  // null: it is complete
  void refused(std::uint64_t sequence);                                            // it threw: not counted
  // A graph with calls of these, made again without anybody's calling them: one entry of its own. calls: how many;
  // none: those that recording it has counted.
  void replayed(const CommStats& calls, const std::shared_ptr<Work::State>& state);
  void end(const CommCall& call);
  void wait_begins(std::uint64_t sequence) { waiting_.store(sequence, std::memory_order_relaxed); }
  void wait_ends(std::int64_t ns);

  CommStats stats() const;  // of this alone
  const std::shared_ptr<CommTally>& tally() const { return tally_; }
  std::uint64_t entered() const;                                                      // sequence of the last call
  std::uint64_t waiting() const { return waiting_.load(std::memory_order_relaxed); }  // in which call; 0: none
  std::vector<CommCall> recent(std::size_t most = ring_size) const;                   // oldest first
  // The oldest call that was entered and is not complete; sequence 0: there is none.
  CommCall oldest_open() const;

 private:
  struct Entry {
    CommCall call;
    std::weak_ptr<Work::State> state;  // gone: complete, since an operation lives until then
    bool posted = false;
    bool complete() const;
  };
  const std::shared_ptr<CommTally> tally_ = std::make_shared<CommTally>();
  std::array<Entry, ring_size> ring_;
  std::uint64_t last_ = 0;  // sequence; with the tally's lock
  std::atomic<std::uint64_t> waiting_{0};
};

class FlightRecorder {
 public:
  void add(const std::shared_ptr<CommLog>& log);                          // counted here
  void add_part(const std::shared_ptr<CommLog>& log, const CommLog& of);  // counted as a part of another
  std::vector<std::shared_ptr<CommLog>> logs() const;  // of the communicators that still exist, oldest first
  std::uint64_t blocked_ns() const;                    // of these and of those that have ended together
  void sign();                                         // the rank is at work, for a watchdog of ranks that work apart
  std::int64_t signed_ns() const { return signed_ns_.load(std::memory_order_relaxed); }  // the last; 0: none

 private:
  void remember(const std::shared_ptr<CommLog>& log);
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<CommLog>> logs_;
  CommTally tally_;
  std::atomic<std::int64_t> signed_ns_{0};
};

std::int64_t steady_now_ns();

}  // namespace trireme

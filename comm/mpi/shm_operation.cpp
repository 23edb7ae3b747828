#include "comm/mpi/shm_operation.h"

#include "comm/copy.h"
#include "comm/error.h"

#include <algorithm>

namespace trireme {
namespace {

std::uint64_t pack(Collective kind, DType dtype, Op op, int root) {
  return static_cast<std::uint64_t>(kind) | static_cast<std::uint64_t>(dtype) << 8 |
         static_cast<std::uint64_t>(op) << 16 | static_cast<std::uint64_t>(static_cast<std::uint32_t>(root)) << 32;
}

std::string describe(std::uint64_t signature, std::uint64_t count) {
  std::string text(name(static_cast<Collective>(signature & 0xff)));
  text.append(" of ").append(std::to_string(count)).append(" ").append(name(static_cast<DType>(signature >> 8 & 0xff)));
  text.append(", ").append(name(static_cast<Op>(signature >> 16 & 0xff)));
  return text.append(", root ").append(std::to_string(signature >> 32));
}

}  // namespace

ShmOperation::ShmOperation(MpiGroup& group, Collective kind, DType dtype, Op op, int root, std::size_t count)
    : g(group), c(*group.shm), kind_(kind), dtype_(dtype), signature_(pack(kind, dtype, op, root)), count_(count) {}

void ShmOperation::share(const void* data, std::size_t bytes) {
  address_ = at(data, 0);
  region_ = c.find(data, bytes);
  if (region_) offset_ = static_cast<std::uint64_t>(at(data, 0) - region_->part(rank()));
}

void ShmOperation::arrive() {
  seq_ = ++c.seq;
  Arrival& mine = arrival(rank());
  mine.signature = signature_;
  mine.count = count_;
  mine.region = region_ ? region_->id() : 0;
  mine.offset = offset_;
  mine.address = address_;
  mine.rounds = 0;
  publish(mine);
  mine.seq.store(seq_, std::memory_order_release);
}

void ShmOperation::compare(const Arrival& theirs, int r) const {
  if (theirs.signature == signature_ && theirs.count == count_) return;
  throw CommError(place(g.me),
                  "collective " + std::to_string(seq_) + " is " + describe(signature_, count_) + " here but " +
                      describe(theirs.signature, theirs.count) + " on rank " + std::to_string(r),
                  "every rank must make the same calls");
}

bool ShmOperation::all_reached(ShmChannel::Progress which, std::uint64_t value) {
  for (; seen_ < size(); ++seen_)
    if (c.progress(seen_, which).load(std::memory_order_acquire) < value) return false;
  seen_ = 0;
  return true;
}

Operation::Step ShmOperation::progress() {
  switch (phase_) {
    case Phase::start:
      arrive();
      phase_ = Phase::arriving;
      [[fallthrough]];
    case Phase::arriving: {
      for (; seen_ < size(); ++seen_)
        if (arrival(seen_).seq.load(std::memory_order_acquire) != seq_) return Step::blocked;
      seen_ = 0;
      for (int r = 0; r < size(); ++r) compare(arrival(r), r);
      arrived();
      if (small()) {
        finish_small();
        return Step::complete;
      }
      bool direct = region_ != nullptr;
      for (int r = 0; r < size() && direct; ++r) direct = arrival(r).region == region_->id();
      if (direct) {
        for (int r = 0; r < size(); ++r) offsets_.push_back(arrival(r).offset);
        phase_ = Phase::direct;
      } else if (can_read() && !c.processes.empty()) {
        for (int r = 0; r < size(); ++r) addresses_.push_back(arrival(r).address);
        phase_ = Phase::direct;
      } else {
        rounds_ = round_count();
        base_ = c.rounds;
        c.rounds += rounds_;
        if (rounds_ == 0) return Step::complete;
        copy_in(0);
        reach(ShmChannel::copied, base_ + 1);
        phase_ = Phase::staged;
      }
      return Step::advanced;
    }
    case Phase::direct:
      return direct();
    case Phase::staged:
      return staged_round();
  }
  return Step::complete;
}

// One iteration for round k: fill k+1, combine k, empty k-1.
Operation::Step ShmOperation::staged_round() {
  switch (stage_) {
    case Stage::fill:
      if (round_ + 1 < rounds_) {
        copy_in(round_ + 1);
        reach(ShmChannel::copied, base_ + round_ + 2);
      }
      stage_ = Stage::combine;
      [[fallthrough]];
    case Stage::combine:
      if (round_ < rounds_) {
        if (!all_reached(ShmChannel::copied, base_ + round_ + 1)) return Step::blocked;
        combine(round_);
        if (two_phases) reach(ShmChannel::reduced, base_ + round_ + 1);
      }
      stage_ = Stage::empty;
      [[fallthrough]];
    case Stage::empty:
      if (two_phases && round_ > 0) {
        if (!all_reached(ShmChannel::reduced, base_ + round_)) return Step::blocked;
        copy_out(round_ - 1);
      }
      stage_ = Stage::fill;
      ++round_;
  }
  return round_ == rounds_ + (two_phases ? 1 : 0) ? Step::complete : Step::advanced;
}

bool CopyList::step() {
  std::size_t left = 256u << 10;
  while (left > 0 && !empty()) {
    Copy& copy = copies_[next_];
    std::size_t n = std::min(left, copy.bytes);
    if (copy.from.process == 0)
      copy_result(copy.to, copy.from.data, n, whole_);
    else if ((n = read_peer(copy.to, copy.from, n)) == 0)
      return false;
    copy.to += n;
    copy.from.data += n;
    copy.bytes -= n;
    left -= n;
    if (copy.bytes == 0) ++next_;
  }
  return true;
}

Operation::Step CopyOperation::direct() {
  // A rank that has failed ends the job with its own error; this one waits for that, but not for ever.
  constexpr std::chrono::seconds patience{5};
  if (!listed_) {
    listed_ = true;
    list(copies_);
  } else if (!copies_.empty()) {
    if (!copies_.step()) {
      const auto now = std::chrono::steady_clock::now();
      if (now - unreadable_.value_or(now) > patience)
        throw CommError(place(g.me), "the memory of rank " + std::to_string(copies_.rank()) + " cannot be read",
                        "has that rank failed? If not, set TRIREME_MPI_TRANSPORT=staged");
      if (!unreadable_) unreadable_ = now;
      return Step::blocked;
    }
  } else {
    return !is_read() || all_finished() ? Step::complete : Step::blocked;
  }
  if (copies_.empty()) finish();
  return Step::advanced;
}

}  // namespace trireme

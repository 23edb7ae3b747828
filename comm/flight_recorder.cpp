#include "comm/flight_recorder.h"

#include <algorithm>
#include <chrono>

namespace trireme {

std::int64_t steady_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// With the lock. Held by nobody else, a part has no log any more; its own parts may still have.
void CommTally::fold() const {
  std::erase_if(parts_, [&](const std::shared_ptr<CommTally>& part) {
    if (part.use_count() > 1) return false;
    std::lock_guard lock(part->mutex_);
    part->fold();
    if (!part->parts_.empty()) return false;
    gone_ += part->own_;
    gone_ += part->gone_;
    return true;
  });
}

CommStats CommTally::sum() const {
  std::lock_guard lock(mutex_);
  fold();
  CommStats all = own_;
  all += gone_;
  for (const auto& part : parts_) all += part->sum();
  return all;
}

void CommTally::add(std::shared_ptr<CommTally> part) {
  std::lock_guard lock(mutex_);
  fold();
  parts_.push_back(std::move(part));
}

bool CommTally::holds(const CommTally& other) const {
  if (this == &other) return true;
  std::lock_guard lock(mutex_);
  return std::any_of(parts_.begin(), parts_.end(), [&](const auto& part) { return part->holds(other); });
}

bool CommLog::Entry::complete() const {
  if (call.end_ns != 0 || call.complete) return true;
  if (!posted) return false;
  const auto operation = state.lock();
  return !operation || operation->settled();
}

std::uint64_t CommLog::begin(CommCall call) {
  std::lock_guard lock(tally_->mutex_);
  call.sequence = ++last_;
  ++tally_->own_.calls;
  tally_->own_.bytes += call.bytes;
  Entry& entry = ring_[call.sequence % ring_size];
  entry.call = call;
  entry.posted = false;
  return call.sequence;
}

void CommLog::posted(std::uint64_t sequence, const std::shared_ptr<Work::State>& state) {
  std::lock_guard lock(tally_->mutex_);
  Entry& entry = ring_[sequence % ring_size];
  if (entry.call.sequence != sequence) return;
  entry.state = state;
  entry.posted = true;
  if (!state) entry.call.complete = true;
}

void CommLog::refused(std::uint64_t sequence) {
  std::lock_guard lock(tally_->mutex_);
  Entry& entry = ring_[sequence % ring_size];
  if (entry.call.sequence != sequence) return;
  entry.call.complete = true;
  if (last_ != sequence) return;  // another thread has posted behind it
  tally_->own_.bytes -= entry.call.bytes;
  --tally_->own_.calls, --last_;
  entry = {};
}

void CommLog::replayed(const CommStats& calls, const std::shared_ptr<Work::State>& state) {
  CommCall all;
  all.name = "replayed step";
  all.bytes = calls.bytes;
  all.begin_ns = steady_now_ns();
  all.site = CallSite::here();
  {
    std::lock_guard lock(tally_->mutex_);
    tally_->own_.calls += calls.calls;
    --tally_->own_.calls;  // begin() counts one
    if (calls.calls > 0) last_ += calls.calls - 1;
  }
  posted(begin(all), state);
}

void CommLog::end(const CommCall& call) {
  std::lock_guard lock(tally_->mutex_);
  Entry& entry = ring_[call.sequence % ring_size];
  if (entry.call.sequence != call.sequence) return;
  entry.call.end_ns = call.end_ns;
  entry.call.complete = true;
}

void CommLog::wait_ends(std::int64_t ns) {
  waiting_.store(0, std::memory_order_relaxed);
  std::lock_guard lock(tally_->mutex_);
  tally_->own_.blocked_ns += static_cast<std::uint64_t>(ns);
}

CommStats CommLog::stats() const {
  std::lock_guard lock(tally_->mutex_);
  return tally_->own_;
}

std::uint64_t CommLog::entered() const {
  std::lock_guard lock(tally_->mutex_);
  return last_;
}

std::vector<CommCall> CommLog::recent(std::size_t most) const {
  std::lock_guard lock(tally_->mutex_);
  std::vector<CommCall> calls;
  const std::uint64_t n = std::min<std::uint64_t>({last_, ring_size, most});
  for (std::uint64_t s = last_ - n + 1; s <= last_; ++s) {
    const Entry& entry = ring_[s % ring_size];
    if (entry.call.sequence != s) continue;  // its place was taken by a call that was refused
    calls.push_back(entry.call);
    calls.back().complete = entry.complete();
  }
  return calls;
}

CommCall CommLog::oldest_open() const {
  std::lock_guard lock(tally_->mutex_);
  for (std::uint64_t s = last_ - std::min<std::uint64_t>(last_, ring_size) + 1; s <= last_; ++s)
    if (const Entry& entry = ring_[s % ring_size]; entry.call.sequence == s && !entry.complete()) return entry.call;
  return {};
}

void FlightRecorder::add(const std::shared_ptr<CommLog>& log) {
  tally_.add(log->tally());
  remember(log);
}

void FlightRecorder::add_part(const std::shared_ptr<CommLog>& log, const CommLog& of) {
  of.tally()->add(log->tally());
  remember(log);
}

void FlightRecorder::remember(const std::shared_ptr<CommLog>& log) {
  std::lock_guard lock(mutex_);
  std::erase_if(logs_, [](const auto& l) { return l.expired(); });
  logs_.push_back(log);
}

std::vector<std::shared_ptr<CommLog>> FlightRecorder::logs() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<CommLog>> found;
  for (const auto& weak : logs_)
    if (auto log = weak.lock()) found.push_back(std::move(log));
  return found;
}

void FlightRecorder::sign() { signed_ns_.store(steady_now_ns(), std::memory_order_relaxed); }

std::uint64_t FlightRecorder::blocked_ns() const { return tally_.sum().blocked_ns; }

}  // namespace trireme

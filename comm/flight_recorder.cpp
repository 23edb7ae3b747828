#include "comm/flight_recorder.h"

#include <algorithm>
#include <chrono>

namespace trireme {

std::int64_t steady_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool CommLog::Entry::complete() const {
  if (call.end_ns != 0 || call.complete) return true;
  if (!posted) return false;
  const auto operation = state.lock();
  return !operation || operation->settled();
}

std::uint64_t CommLog::begin(CommCall call) {
  std::lock_guard lock(mutex_);
  call.sequence = ++totals_.calls;
  totals_.bytes += call.bytes;
  Entry& entry = ring_[call.sequence % ring_size];
  entry.call = call;
  entry.posted = false;
  return call.sequence;
}

void CommLog::posted(std::uint64_t sequence, const std::shared_ptr<Work::State>& state) {
  std::lock_guard lock(mutex_);
  Entry& entry = ring_[sequence % ring_size];
  if (entry.call.sequence != sequence) return;
  entry.state = state;
  entry.posted = true;
  if (!state) entry.call.complete = true;
}

void CommLog::refused(std::uint64_t sequence) {
  std::lock_guard lock(mutex_);
  Entry& entry = ring_[sequence % ring_size];
  if (entry.call.sequence != sequence) return;
  entry.call.complete = true;
  if (totals_.calls != sequence) return;  // another thread has posted behind it
  totals_.bytes -= entry.call.bytes;
  --totals_.calls;
  entry = {};
}

void CommLog::end(const CommCall& call) {
  std::lock_guard lock(mutex_);
  Entry& entry = ring_[call.sequence % ring_size];
  if (entry.call.sequence != call.sequence) return;
  entry.call.end_ns = call.end_ns;
  entry.call.complete = true;
}

void CommLog::wait_ends(std::int64_t ns) {
  waiting_.store(0, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  totals_.blocked_ns += static_cast<std::uint64_t>(ns);
}

CommStats CommLog::stats() const {
  std::lock_guard lock(mutex_);
  return totals_;
}

std::vector<CommCall> CommLog::recent(std::size_t most) const {
  std::lock_guard lock(mutex_);
  std::vector<CommCall> calls;
  const std::uint64_t last = totals_.calls, n = std::min<std::uint64_t>({last, ring_size, most});
  for (std::uint64_t s = last - n + 1; s <= last; ++s) {
    const Entry& entry = ring_[s % ring_size];
    if (entry.call.sequence != s) continue;  // its place was taken by a call that was refused
    calls.push_back(entry.call);
    calls.back().complete = entry.complete();
  }
  return calls;
}

CommCall CommLog::oldest_open() const {
  std::lock_guard lock(mutex_);
  const std::uint64_t last = totals_.calls;
  for (std::uint64_t s = last - std::min<std::uint64_t>(last, ring_size) + 1; s <= last; ++s)
    if (const Entry& entry = ring_[s % ring_size]; entry.call.sequence == s && !entry.complete()) return entry.call;
  return {};
}

void FlightRecorder::add(const std::shared_ptr<CommLog>& log) {
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

std::uint64_t FlightRecorder::blocked_ns() const {
  std::uint64_t sum = 0;
  for (const auto& log : logs()) sum += log->stats().blocked_ns;
  return sum;
}

}  // namespace trireme

// How a thread waits for another process: spin for a few microseconds, then give the core away, then sleep,
// so that a late peer never costs a core for long.
#pragma once
#include <algorithm>
#include <chrono>
#include <thread>

#include <sched.h>

namespace trireme {

class Backoff {
 public:
  // `crowded`: somebody else probably wants this core. `far`: the other process is on another node: a message is longer
  // on its way than yielding helps, and each look at the network costs system calls.
  explicit Backoff(bool crowded, bool far = false)
      : spin_(crowded ? 0 : 30), look_(crowded ? 2 : 16), sleeps_(crowded ? 4 : 8) {
    if (far) {
      yields_ = 0;
      longest_sleep_ = std::chrono::microseconds(crowded ? 1000 : 200);
    } else {
      yields_ = crowded ? 50 : 400;
      longest_sleep_ = shortest_sleep;
    }
  }

  void reset() { spun_ = rested_ = 0; }
  int rested() const { return rested_; }  // since the last reset
  // False once it is time to rest. Time counts, not turns: what the caller polls may be a word in memory or the kernel.
  bool spin() {
    if (spun_ < 0) return false;
    if (spun_++ == 0) begin_ = Clock::now();
    if (spun_ % look_ == 0 && Clock::now() - begin_ >= spin_) {
      spun_ = -1;
      return false;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return true;
  }
  void rest() {
    if (spun_ == 0) {  // it could not even look
      spun_ = 1;
      begin_ = Clock::now();
    }
    if (rested_ < yields_) {
      ++rested_;
      sched_yield();
    } else {
      // A part of the time waited: what the sleep adds to it stays small.
      const auto waited = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin_);
      std::this_thread::sleep_for(std::clamp(waited / sleeps_, shortest_sleep, longest_sleep_));
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  const std::chrono::microseconds spin_;
  const int look_;    // turns from one look at the clock to the next
  const int sleeps_;  // in the time waited so far
  static constexpr std::chrono::microseconds shortest_sleep{50};
  int yields_;
  std::chrono::microseconds longest_sleep_;
  int spun_ = 0, rested_ = 0;  // spun_ < 0: long enough
  Clock::time_point begin_;
};

}  // namespace trireme

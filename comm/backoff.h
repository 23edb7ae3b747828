// How a thread waits for another process: spin for a few microseconds, then give the core away, then sleep,
// so that a late peer never costs a core for long.
#pragma once
#include <chrono>
#include <thread>

#include <sched.h>

namespace trireme {

class Backoff {
 public:
  // `crowded`: somebody else probably wants this core.
  explicit Backoff(bool crowded) : spins_(crowded ? 20 : 2000), yields_(crowded ? 50 : 400) {}

  void reset() { spun_ = rested_ = 0; }
  // False once it is time to rest.
  bool spin() {
    if (spun_ >= spins_) return false;
    ++spun_;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return true;
  }
  void rest() {
    if (rested_ < yields_) {
      ++rested_;
      sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  const int spins_, yields_;
  int spun_ = 0, rested_ = 0;
};

}  // namespace trireme

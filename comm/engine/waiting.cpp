#include "comm/engine/waiting.h"

#include <cstring>

namespace trireme {
namespace {

// Whoever meets a peer on its core again that soon has not met it by chance.
constexpr std::chrono::milliseconds stays_home{50};

}  // namespace

void Naps::wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  wake_.notify_one();
}

void Naps::wake_for(bool small, bool caller_waits) {
  const Sleep asleep = asleep_.load();
  if (caller_waits && asleep != Sleep::deep) return;
  if (!small || (asleep != Sleep::none && asleep_.exchange(Sleep::none) != Sleep::none)) wake();
}

// Ranks that nobody binds may meet on one core while others idle, and a load balancer takes milliseconds to see it.
// False if that would not help, or did not a moment ago.
bool SharedCore::go_home() {
  if (home_ < 0) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - went_home_.load(std::memory_order_relaxed) < stays_home) return false;
  cpu_set_t allowed, home;
  CPU_ZERO(&home);
  CPU_SET(home_, &home);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || !CPU_ISSET(home_, &allowed)) return false;
  if (sched_setaffinity(0, sizeof home, &home) != 0) return false;
  went_home_.store(now, std::memory_order_relaxed);
  if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) {  // its cores changed meanwhile: to any that it may use
    std::memset(&allowed, 0xff, sizeof allowed);
    sched_setaffinity(0, sizeof allowed, &allowed);
  }
  return true;
}

}  // namespace trireme

// Patience of the engine: how a thread waits for another process, when the communication thread sleeps and who wakes
// it, and what happens to ranks that meet on one core. No order of operations depends on anything here.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <sched.h>

namespace trireme {

// Spins for a few microseconds, then gives the core away, then sleeps, so that a late peer never costs a core for long.
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

// Whether callers wait at once for what they post, judged by the last posts: then nobody needs to be woken for the
// next.
class PromptWaits {
 public:
  using Clock = std::chrono::steady_clock;
  void posted() {
    if (unwaited_.exchange(true, std::memory_order_relaxed))
      row_.store(0, std::memory_order_relaxed);
    else
      at_.store(Clock::now(), std::memory_order_relaxed);
  }
  void waits() {
    if (!unwaited_.load(std::memory_order_relaxed)) return;
    unwaited_.store(false, std::memory_order_relaxed);
    const bool prompt = Clock::now() - at_.load(std::memory_order_relaxed) < std::chrono::microseconds(50);
    row_.store(prompt ? row_.load(std::memory_order_relaxed) + 1 : 0, std::memory_order_relaxed);
  }
  bool expected() const { return row_.load(std::memory_order_relaxed) >= 4; }

 private:
  std::atomic<bool> unwaited_{false};
  std::atomic<unsigned> row_{0};
  std::atomic<Clock::time_point> at_{};  // of the oldest post that nobody has waited for
};

// The sleep of the communication thread. After its last work it naps twice as long each time, then sleeps until woken.
// In the first nap it need not be woken for small work.
class Naps {
 public:
  // Its thread: there was work; and until it is woken, `due()` says so, or a nap ends. `due` may be called with a lock.
  void worked() { nap_ = first_nap; }
  template <class F>
  void sleep(const F& due) {
    std::unique_lock lock(mutex_);
    const auto end = [&] { return woken_ || due(); };
    if (nap_ > last_nap) {
      asleep_ = Sleep::deep;
      wake_.wait(lock, end);
    } else {
      if (nap_ > first_nap) asleep_ = Sleep::nap;
      wake_.wait_for(lock, nap_, end);
    }
    asleep_ = Sleep::none;
    nap_ = woken_ ? first_nap : 2 * nap_;
    woken_ = false;
  }
  // Any thread.
  void wake();
  // Something was posted. For small work a nap is ended once: until the thread gets a core, further posts must not pay
  // for that as well. Whoever is about to wait for it does the work itself, unless the thread might sleep for good.
  void wake_for(bool small, bool caller_waits);

 private:
  static constexpr std::chrono::microseconds first_nap{500}, last_nap{16000};
  enum class Sleep : std::uint8_t { none, nap, deep };  // a nap ends by itself

  std::chrono::microseconds nap_ = first_nap;  // its thread's
  std::mutex mutex_;
  std::condition_variable wake_;
  bool woken_ = false;  // with the lock
  std::atomic<Sleep> asleep_{Sleep::none};
};

// The scheduler may put two ranks on one core: then the peer goes on only once this thread yields, and waiting must not
// spin first. Seen by waits that end with their first yields.
class SharedCore {
 public:
  // `home`: a core that no other rank of this node has for its home, or -1.
  explicit SharedCore(int home) : home_(home) {}
  // Should a wait yield at once? Now and then it spins all the same, to find out whether that is still so.
  bool yields_at_once() {
    return shared_.load(std::memory_order_relaxed) &&
           brief_waits_.fetch_add(1, std::memory_order_relaxed) % try_to_spin != 0;
  }
  // A wait is over that rested `rested` times between two signs of life of a peer.
  void waited(int rested, bool yielded_at_once) {
    if (rested == 0 && yielded_at_once) return;
    const bool shares = rested == 1 || rested == 2;
    shared_.store(shares && !go_home(), std::memory_order_relaxed);
  }

 private:
  static constexpr unsigned try_to_spin = 16;
  bool go_home();

  const int home_;
  std::atomic<bool> shared_{false};
  std::atomic<unsigned> brief_waits_{0};
  std::atomic<std::chrono::steady_clock::time_point> went_home_{};
};

}  // namespace trireme

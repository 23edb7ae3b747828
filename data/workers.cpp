#include "data/workers.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace trireme {

struct Workers::Team {
  std::mutex one_task;  // held by who called each()

  std::mutex mutex;
  std::condition_variable_any changed;
  const std::function<void(std::int64_t)>* f = nullptr;
  std::int64_t n = 0;
  std::uint64_t task = 0;  // counts tasks
  int working = 0;
  std::atomic<std::int64_t> next{0};
  std::int64_t failed = 0;  // the least item that threw; n: none
  std::exception_ptr error;
  std::vector<std::jthread> threads;  // last: they stop before the rest goes

  // Items before a failed one are still done: one of them may fail too, and is then the one to tell.
  void work(const std::function<void(std::int64_t)>& each, std::int64_t count) {
    for (std::int64_t i; (i = next.fetch_add(1)) < count;) {
      try {
        each(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < failed) failed = i, error = std::current_exception();
        next = count;  // items are handed out in order: all before this one are done or under way
      }
    }
  }

  void run(const std::stop_token& stop) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (changed.wait(lock, stop, [&] { return task != seen; })) {
      seen = task;
      if (!f) continue;  // woke up too late for it
      ++working;
      const auto& each = *f;
      const std::int64_t count = n;
      lock.unlock();
      work(each, count);
      lock.lock();
      if (--working == 0) changed.notify_all();
    }
  }
};

Workers::Workers(int threads) : team_(std::make_unique<Team>()) {
  for (int t = 1; t < threads; ++t)
    team_->threads.emplace_back([team = team_.get()](const std::stop_token& stop) { team->run(stop); });
}

Workers::~Workers() = default;

int Workers::threads() const { return int(team_->threads.size()) + 1; }

void Workers::each(std::int64_t n, const std::function<void(std::int64_t)>& f) {
  Team& t = *team_;
  const std::lock_guard one(t.one_task);
  {
    const std::lock_guard lock(t.mutex);
    t.f = &f, t.n = n, t.failed = n, t.error = nullptr, t.next = 0;
    ++t.task;
  }
  if (n > 1) t.changed.notify_all();
  t.work(f, n);
  std::unique_lock lock(t.mutex);
  t.f = nullptr;  // nobody begins any more
  t.changed.wait(lock, [&] { return t.working == 0; });
  if (t.error) std::rethrow_exception(std::exchange(t.error, nullptr));
}

}  // namespace trireme

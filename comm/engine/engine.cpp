#include "comm/engine/engine.h"

#include "comm/engine/waiting.h"
#include "comm/error.h"

#include <algorithm>
#include <cstring>

#include <sched.h>

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

// Which engine this thread polls, and which queue's then() it is running: posts from there must not lock
// again.
thread_local const Engine* polling_engine = nullptr;
thread_local const Queue* running_queue = nullptr;

struct Polling {
  explicit Polling(const Engine* engine) : before(polling_engine) { polling_engine = engine; }
  ~Polling() { polling_engine = before; }
  const Engine* before;
};

struct Running {
  explicit Running(const Queue* queue) : before(running_queue) { running_queue = queue; }
  ~Running() { running_queue = before; }
  const Queue* before;
};

// From this size on the communication thread is woken for one collective alone.
constexpr std::size_t wake_bytes = 512 * 1024;
// After its last work the communication thread naps twice as long each time, then sleeps until woken. In the first nap
// it need not be woken for small work.
constexpr std::chrono::microseconds first_nap{500}, last_nap{16000};
// So often a waiter of Source::posts polls although nothing was posted.
constexpr std::chrono::milliseconds look_again{2};
// So often a waiter that yields at once, because a peer seems to share its core, finds out whether that is still so.
constexpr unsigned try_to_spin = 16;
// Whoever meets a peer on its core again that soon has not met it by chance.
constexpr std::chrono::milliseconds stays_home{50};

class Continuation final : public Operation {
 public:
  Continuation(std::shared_ptr<Operation> parent, std::function<Work()> next)
      : parent_(std::move(parent)), next_(std::move(next)) {}

  Step progress() override {
    if (!parent_->settled()) return Step::blocked;
    parent_->done();  // throws the parent's error
    parent_ = nullptr;
    const std::function<Work()> next = std::move(next_);  // what it holds ends here, whatever happens
    const Running here(queue_.get());
    inner_ = next();
    return Step::complete;
  }
  bool settled() override { return Operation::settled() && (error_ || inner_.settled()); }
  bool done() override { return Operation::done() && inner_.done(); }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const auto end = Clock::now() + timeout;
    if (!Operation::wait_host(timeout)) return false;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    return !inner_.state() || inner_.state()->wait_host(std::max(left, std::chrono::milliseconds(0)));
  }
  void wait() override {
    Operation::wait();
    inner_.wait();
  }

 private:
  std::shared_ptr<Operation> parent_;
  std::function<Work()> next_;
  Work inner_;
};

}  // namespace

void Operation::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

bool Operation::done() {
  if (!finished_.load(std::memory_order_acquire) && !queue_->engine_->polling_here()) queue_->engine_->try_progress();
  if (!finished_.load(std::memory_order_acquire)) return false;
  rethrow();
  return true;
}

bool Operation::wait_until(Deadline deadline) {
  queue_->prompt_waits_.waits();
  if (!finished_.load(std::memory_order_acquire) && !queue_->engine_->wait(*this, deadline)) return false;
  rethrow();
  return true;
}

bool Operation::wait_host(std::chrono::milliseconds timeout) { return wait_until(Clock::now() + timeout); }

std::shared_ptr<Work::State> Operation::then(std::function<Work()> next) {
  auto continuation = std::make_shared<Continuation>(shared_from_this(), std::move(next));
  queue_->push(continuation, 0);
  return continuation;
}

Work Queue::push(std::shared_ptr<Operation> operation, std::size_t bytes) {
  operation->queue_ = shared_from_this();
  Work work(operation);
  const bool behind_others = pending_.fetch_add(1, std::memory_order_acq_rel) > 0;
  engine_->pending_.fetch_add(1);  // in one order with asleep_ and waiters_: nobody sleeps beside work
  if (running_queue == this) {
    active_.insert(active_.begin() + static_cast<std::ptrdiff_t>(insert_at_++), std::move(operation));
  } else {
    {
      std::lock_guard lock(inbox_mutex_);
      inbox_.push_back(std::move(operation));
    }
    engine_->posted(bytes, behind_others, prompt_waits_);
  }
  return work;
}

void Queue::finish(Operation& operation, std::exception_ptr error) {
  operation.error_ = std::move(error);
  operation.finished_.store(true, std::memory_order_release);
  pending_.fetch_sub(1, std::memory_order_acq_rel);
  engine_->pending_.fetch_sub(1, std::memory_order_acq_rel);
}

// Runs the head, and the next one if that completed. True if anything moved.
bool Queue::advance() {
  {
    std::lock_guard lock(inbox_mutex_);
    for (auto& operation : inbox_) active_.push_back(std::move(operation));
    inbox_.clear();
  }
  if (active_.empty()) return false;
  const std::shared_ptr<Operation> head = active_.front();
  if (!broken_ && engine_->failed_.load(std::memory_order_acquire)) broken_ = engine_->failure_;
  std::exception_ptr error = broken_;
  using Step = Operation::Step;
  Step step = Step::complete;
  if (!error) {
    try {
      insert_at_ = 1;
      step = head->progress();
    } catch (...) {
      broken_ = error = std::current_exception();
      step = Step::complete;
    }
  }
  if (step == Step::complete) {
    active_.pop_front();
    finish(*head, error);
  }
  return step != Step::blocked;
}

Engine::Engine(Source source, bool crowded, bool far, int home)
    : source_(source), crowded_(crowded), far_(far), home_(home) {
  if (source_ == Source::peers) thread_ = std::thread([this] { run_thread(); });
}

Engine::~Engine() { stop(); }

void Engine::stop() {
  stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

void Engine::add(std::shared_ptr<Queue> queue) {
  std::lock_guard lock(progress_);
  queues_.push_back(std::move(queue));
}

void Engine::retire(Queue& queue) {
  queue.retired_.store(true, std::memory_order_release);
  if (!polling_here() && queue.empty()) {
    std::shared_ptr<Queue> last;  // destroyed after the lock
    std::lock_guard lock(progress_);
    const auto it = std::find_if(queues_.begin(), queues_.end(), [&](auto& q) { return q.get() == &queue; });
    if (it == queues_.end()) return;
    last = std::move(*it);
    queues_.erase(it);
  }
}

void Engine::fail(std::exception_ptr error) {
  {
    std::lock_guard lock(progress_);
    if (!failure_) failure_ = std::move(error);
    failed_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void Engine::rethrow_failure() {
  std::lock_guard lock(progress_);
  if (failure_) std::rethrow_exception(failure_);
}

void Engine::close() {
  std::vector<std::shared_ptr<Queue>> last;  // destroyed after the lock
  std::lock_guard lock(progress_);
  while (poll()) {
  }
  last.swap(queues_);
  for (auto& queue : last) queue->active_.clear();
}

bool Engine::exclusively(std::chrono::milliseconds patience, const std::function<void()>& f) {
  if (polling_here()) {
    f();
    return true;
  }
  const auto end = Clock::now() + patience;
  while (!progress_.try_lock()) {
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  std::lock_guard lock(progress_, std::adopt_lock);
  f();
  return true;
}

bool Engine::polling_here() const { return polling_engine == this; }

// One round over all heads, with progress_ held.
bool Engine::poll() {
  Polling here(this);
  bool moved = false, retired = false;
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = *queues_[i];
    if (!queue.empty()) moved |= queue.advance();
    retired |= queue.retired_.load(std::memory_order_relaxed) && queue.empty();
  }
  if (retired)
    std::erase_if(queues_, [](auto& q) { return q->retired_.load(std::memory_order_acquire) && q->empty(); });
  return moved;
}

bool Engine::try_progress() {
  bool moved = false;
  {
    std::unique_lock lock(progress_, std::try_to_lock);
    if (!lock) return false;
    while (poll()) moved = true;
  }
  if (moved && source_ == Source::posts) changed_.notify_all();
  return moved;
}

void Engine::changed() {
  posts_.fetch_add(1);
  if (polling_here()) return;  // this thread's poll sees it
  {
    std::lock_guard lock(progress_);
    while (poll()) {
    }
  }
  changed_.notify_all();
}

void Engine::posted(std::size_t bytes, bool behind_others, PromptWaits& waits) {
  if (source_ == Source::posts) return changed();
  if (polling_here()) return;  // this thread's poll sees it
  const bool small = !behind_others && bytes < wake_bytes;
  // Small and alone: start it here (its data travels at once); wait() or the communication thread finishes it.
  if (small && progress_.try_lock()) {
    std::lock_guard lock(progress_, std::adopt_lock);
    poll();
    if (pending_.load(std::memory_order_acquire) == 0) return;
  }
  waits.posted();
  const Sleep asleep = asleep_.load();
  if (waits.expected() && asleep != Sleep::deep) return;
  // For small work it is woken once: until the thread gets a core, further posts must not pay for that as well.
  if (!small || (asleep != Sleep::none && asleep_.exchange(Sleep::none) != Sleep::none)) wake();
}

bool Engine::wait(Operation& operation, Operation::Deadline deadline) {
  if (polling_here())
    throw CommError("", "wait() on a collective inside then()", "return its Work from the function instead");
  return source_ == Source::posts ? wait_for_post(operation, deadline) : wait_for_peers(operation, deadline);
}

bool Engine::wait_for_post(Operation& operation, Operation::Deadline deadline) {
  std::unique_lock lock(progress_);
  for (;;) {
    bool moved = false;
    while (poll()) moved = true;
    if (moved) changed_.notify_all();
    if (operation.finished_.load(std::memory_order_acquire)) return true;
    const std::uint64_t seen = posts_.load();
    const auto changed = [&] {
      return operation.finished_.load(std::memory_order_acquire) || posts_.load() != seen || failed_.load();
    };
    // A continuation may wait for a Work that completes by time alone (a modelled link): look again now and then.
    const auto look = Clock::now() + look_again;
    if (!changed_.wait_until(lock, deadline ? std::min(look, *deadline) : look, changed) && deadline &&
        Clock::now() >= *deadline)
      return false;
  }
}

bool Engine::wait_for_peers(Operation& operation, Operation::Deadline deadline) {
  const auto finished = [&] { return operation.finished_.load(std::memory_order_acquire); };
  waiters_.fetch_add(1);
  // The scheduler may put two ranks on one core: then the peer goes on only once this thread yields.
  const bool brief = crowded_ || (shares_core_.load(std::memory_order_relaxed) &&
                                  brief_waits_.fetch_add(1, std::memory_order_relaxed) % try_to_spin != 0);
  Backoff backoff(brief, far_);
  bool in_time = true;
  int rested = 0;
  while (!finished() && in_time) {
    if (progress_.try_lock()) {
      std::lock_guard lock(progress_, std::adopt_lock);
      while (!finished()) {
        if (poll()) {
          rested = std::max(rested, backoff.rested());
          backoff.reset();
        } else if (!backoff.spin()) {
          break;
        }
      }
    }
    if (finished()) break;
    if (deadline && Clock::now() >= *deadline) in_time = false;
    if (in_time) backoff.rest();
  }
  if (rested > 0 || !brief) {
    const bool shares = rested == 1 || rested == 2;
    shares_core_.store(shares && !go_home(), std::memory_order_relaxed);
  }
  if (waiters_.fetch_sub(1) == 1 && pending_.load() > 0) wake();
  return in_time;
}

// Ranks that nobody binds may meet on one core while others idle, and a load balancer takes milliseconds to see it.
// False if that would not help, or did not a moment ago.
bool Engine::go_home() {
  if (home_ < 0) return false;
  const auto now = Clock::now();
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

void Engine::drain() {
  for (;;) {
    std::vector<std::shared_ptr<Operation>> last;
    {
      std::lock_guard lock(progress_);
      Polling here(this);
      for (auto& queue : queues_) {
        if (!queue->empty()) queue->advance();
        if (!queue->active_.empty()) last.push_back(queue->active_.back());
      }
    }
    if (last.empty() && pending_.load(std::memory_order_acquire) == 0) return;
    for (auto& operation : last) operation->wait();
  }
}

void Engine::wake() {
  {
    std::lock_guard lock(sleep_);
    woken_ = true;
  }
  wake_.notify_one();
}

void Engine::run_thread() {
  auto nap = first_nap;
  Backoff backoff(true, far_);
  const auto due = [&] { return pending_.load() > 0 && waiters_.load() == 0; };
  while (!stop_.load()) {
    if (due()) {
      nap = first_nap;
      bool moved = false;
      if (progress_.try_lock()) {
        std::lock_guard lock(progress_, std::adopt_lock);
        while (waiters_.load(std::memory_order_relaxed) == 0 && poll()) moved = true;
      }
      if (moved) backoff.reset();
      if (due() && !backoff.spin()) backoff.rest();
      continue;
    }
    // Nothing to do, or a waiter does it.
    std::unique_lock lock(sleep_);
    const auto end = [&] { return woken_ || stop_.load() || due(); };
    if (nap > last_nap) {
      asleep_ = Sleep::deep;
      wake_.wait(lock, end);
    } else {
      if (nap > first_nap) asleep_ = Sleep::nap;
      wake_.wait_for(lock, nap, end);
    }
    asleep_ = Sleep::none;
    nap = woken_ ? first_nap : 2 * nap;
    woken_ = false;
    backoff.reset();
  }
}

}  // namespace trireme

// Progress of asynchronous collectives. A collective is a small state machine (Operation); a communicator
// keeps its operations in a Queue and only the head of a queue runs, so order holds within a communicator; an
// Engine polls the heads of all its queues, so that several communicators progress at once.
#pragma once
#include "comm/work.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace trireme {

class Engine;
class Queue;

class Operation : public Work::State, public std::enable_shared_from_this<Operation> {
 public:
  enum class Step : std::uint8_t { blocked, advanced, complete };
  // One bounded piece of work, never blocking. Called by one thread at a time, only while at the head of the
  // queue. What it throws becomes the error of this and of every later operation of the queue.
  virtual Step progress() = 0;

  bool done() override;
  void wait() override { wait_until(std::nullopt); }
  bool wait_host(std::chrono::milliseconds timeout) override;
  std::shared_ptr<State> then(std::function<Work()> next) final;
  bool settled() override { return finished_.load(std::memory_order_acquire); }

  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

 protected:
  friend class Engine;
  friend class Queue;
  virtual bool wait_until(Deadline deadline);
  void rethrow() const;

  std::shared_ptr<Queue> queue_;
  std::exception_ptr error_;  // written before finished_
  std::atomic<bool> finished_{false};
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

// The operations of one communicator, first in, first out.
class Queue : public std::enable_shared_from_this<Queue> {
 public:
  explicit Queue(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  virtual ~Queue() = default;

  // Any thread. `bytes` says how much work it is: a large operation wakes the communication thread at once, unless that
  // naps and the caller is expected to wait.
  // Inside a then() of this queue it is placed right behind, so that the order is the same on every rank.
  Work push(std::shared_ptr<Operation> operation, std::size_t bytes);
  bool empty() const { return pending_.load(std::memory_order_acquire) == 0; }
  Engine& engine() const { return *engine_; }

 private:
  friend class Engine;
  friend class Operation;
  bool advance();
  void finish(Operation& operation, std::exception_ptr error);

  std::shared_ptr<Engine> engine_;
  std::mutex inbox_mutex_;
  std::vector<std::shared_ptr<Operation>> inbox_;
  std::deque<std::shared_ptr<Operation>> active_;  // touched only by the thread that polls
  std::size_t insert_at_ = 0;                      // where a running then() places what it posts
  std::atomic<std::size_t> pending_{0};
  std::atomic<bool> retired_{false};
  PromptWaits prompt_waits_;
  std::exception_ptr broken_;
};

class Engine {
 public:
  // posts: operations can only advance when this process posts one (loopback): waiters sleep.
  // peers: other processes advance them: waiters poll, and a communication thread polls while nobody waits.
  enum class Source : std::uint8_t { posts, peers };
  // `crowded`: more ranks than cores on this node; waiting then gives up its core sooner. `far`: some are on other
  // nodes; waiting then sleeps sooner. `home`: a core that no other rank of this node has for its home, or -1: where a
  // thread goes that met a peer on its core.
  explicit Engine(Source source, bool crowded = false, bool far = false, int home = -1);
  ~Engine();

  void add(std::shared_ptr<Queue> queue);
  // The communicator is gone: forget the queue once its last operation is complete.
  void retire(Queue& queue);
  void drain();  // waits until every operation of every queue is complete; throws the first error
  void stop();   // ends the communication thread; waiters still make progress
  // Fails everything posted and everything to come (loopback: another rank threw).
  void fail(std::exception_ptr error);
  void rethrow_failure();
  void close();    // forgets all queues after a last round; nothing may be posted after it
  void changed();  // Source::posts: something changed: waiters look again
  // Runs `f` while no other thread polls; false if that took longer than `patience`.
  bool exclusively(std::chrono::milliseconds patience, const std::function<void()>& f);

 private:
  friend class Operation;
  friend class Queue;
  bool polling_here() const;
  bool poll();
  bool try_progress();
  bool wait(Operation& operation, Operation::Deadline deadline);
  bool wait_for_post(Operation& operation, Operation::Deadline deadline);
  bool wait_for_peers(Operation& operation, Operation::Deadline deadline);
  void posted(std::size_t bytes, bool behind_others, PromptWaits& waits);
  bool go_home();
  void run_thread();
  void wake();

  const Source source_;
  const bool crowded_, far_;
  const int home_;
  std::mutex progress_;  // held by the thread that polls
  std::vector<std::shared_ptr<Queue>> queues_;
  std::exception_ptr failure_;
  std::condition_variable changed_;  // with progress_; Source::posts only
  std::atomic<std::uint64_t> posts_{0};
  std::atomic<std::size_t> pending_{0};
  std::atomic<int> waiters_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> shares_core_{false};  // the last wait ended when this thread gave its core away
  std::atomic<unsigned> brief_waits_{0};
  std::atomic<std::chrono::steady_clock::time_point> went_home_{};

  std::mutex sleep_;
  std::condition_variable wake_;
  bool woken_ = false;                                  // with sleep_
  enum class Sleep : std::uint8_t { none, nap, deep };  // a nap ends by itself
  std::atomic<Sleep> asleep_{Sleep::none};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace trireme

// Handle of an asynchronous collective. Copyable; the last copy may be dropped before completion (the
// operation still completes; its buffers must stay valid until then).
#pragma once
#include <chrono>
#include <functional>
#include <memory>

namespace trireme {

class Work {
 public:
  // What a communicator implements.
  class State {
   public:
    virtual ~State() = default;
    virtual bool done() = 0;  // may make progress; never blocks
    // Has it completed or failed? Makes no progress, never throws, any thread.
    virtual bool settled() = 0;
    virtual void wait() = 0;  // host memory: blocks the caller; device memory: the caller's stream waits
    // Blocks the host until complete; false on timeout. Errors of the operation are thrown from here and from
    // wait().
    virtual bool wait_host(std::chrono::milliseconds timeout) = 0;
    // Runs `next` once this is complete, in order, where the communicator makes progress.
    virtual std::shared_ptr<State> then(std::function<Work()> next) = 0;
  };

  Work() = default;  // already complete
  explicit Work(std::shared_ptr<State> state) : state_(std::move(state)) {}

  bool done() { return !state_ || state_->done(); }
  bool settled() { return !state_ || state_->settled(); }
  void wait() {
    if (state_) state_->wait();
  }
  void wait_host(std::chrono::milliseconds timeout);  // throws CommError on timeout
  // `next` may post on the same communicator (that keeps its place in the order) and must neither wait nor
  // hold locks that a waiting thread holds; the returned Work completes when the Work from `next` does.
  Work then(std::function<Work()> next);
  const std::shared_ptr<State>& state() const { return state_; }

 private:
  std::shared_ptr<State> state_;
};

}  // namespace trireme

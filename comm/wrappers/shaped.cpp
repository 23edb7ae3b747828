#include "comm/wrappers/shaped.h"

#include "comm/error.h"

#include <algorithm>
#include <thread>

namespace trireme {
namespace {

using Clock = Shaped::Clock;

// Complete when `inner` is and the time has come.
class ShapedState final : public Work::State {
 public:
  ShapedState(Work inner, Clock::time_point due) : inner_(std::move(inner)), due_(due) {}

  bool done() override { return inner_.done() && Clock::now() >= due_; }
  bool settled() override { return inner_.settled() && Clock::now() >= due_; }
  void wait() override {
    inner_.wait();
    std::this_thread::sleep_until(due_);
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const auto end = Clock::now() + timeout;
    if (inner_.state() && !inner_.state()->wait_host(timeout)) return false;
    std::this_thread::sleep_until(std::min(end, due_));
    return due_ <= end;
  }
  // `next` runs where the inner communicator makes progress, which must not sleep: the time is a Work of its own, and
  // the queue goes on when that is complete.
  std::shared_ptr<State> then(std::function<Work()> next) override {
    if (!inner_.state()) return time_then(std::move(next));
    Work timed = inner_.then([due = due_] { return Work(std::make_shared<ShapedState>(Work(), due)); });
    Work last = timed.then(std::move(next));
    return std::shared_ptr<State>(std::make_shared<ShapedState>(std::move(last), due_));
  }

 private:
  // The inner collective was complete when it was posted: nothing makes progress but this thread.
  std::shared_ptr<State> time_then(const std::function<Work()>& next) {
    std::this_thread::sleep_until(due_);
    return std::make_shared<ShapedState>(next(), due_);
  }

  Work inner_;
  const Clock::time_point due_;
};

}  // namespace

Shaped::Shaped(Communicator& inner, LinkModel model)
    : Wrapper(inner), link_(std::make_shared<Link>(model)), backend_(std::string(inner.backend()) + ", modelled link") {
  if (!(model.alpha >= 0) || !(model.beta > 0))
    throw UsageError("shaped", "alpha must be 0 or more and beta above 0", "alpha in seconds, beta in bytes a second");
}

Shaped::Shaped(std::unique_ptr<Communicator> inner, std::shared_ptr<Link> link)
    : Wrapper(std::move(inner)), link_(std::move(link)), backend_(std::string(inner_.backend()) + ", modelled link") {}

Work Shaped::shape(Work inner, double steps, double bytes) {
  if (size() == 1) return inner;  // no link is crossed
  const auto takes = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(steps * link_->model.alpha + bytes / link_->model.beta));
  const Clock::rep now = Clock::now().time_since_epoch().count();
  Clock::rep free_at = link_->free_at.load(), due;
  do {
    due = std::max(now, free_at) + takes.count();
  } while (!link_->free_at.compare_exchange_weak(free_at, due));
  return Work(std::make_shared<ShapedState>(std::move(inner), Clock::time_point(Clock::duration(due))));
}

Work Shaped::all_reduce(Buffer inout, Op op) {
  const double n = size();
  return shape(inner_.all_reduce(inout, op), 2 * (n - 1), 2 * (n - 1) / n * double(inout.bytes()));
}
Work Shaped::reduce_scatter(ConstBuffer in, Buffer out, Op op) {
  const double others = size() - 1;
  return shape(inner_.reduce_scatter(in, out, op), others, others * double(out.bytes()));
}
Work Shaped::all_gather(ConstBuffer in, Buffer out) {
  const double others = size() - 1;
  return shape(inner_.all_gather(in, out), others, others * double(in.bytes()));
}
Work Shaped::all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                        std::span<const std::size_t> recv) {
  Work work = inner_.all_to_all(in, send, out, recv);  // checks send first
  std::size_t elements = 0;
  for (std::size_t r = 0; r < send.size(); ++r)
    if (r != std::size_t(rank())) elements += send[r];
  return shape(std::move(work), size() - 1, double(elements * size_of(in.dtype)));
}
Work Shaped::broadcast(Buffer inout, int root) {
  return shape(inner_.broadcast(inout, root), size() - 1, double(inout.bytes()));
}
Work Shaped::barrier() { return shape(inner_.barrier(), 2.0 * (size() - 1), 0); }

std::unique_ptr<Communicator> Shaped::split(int color, int key) {
  return std::unique_ptr<Communicator>(new Shaped(inner_.split(color, key), link_));
}

}  // namespace trireme

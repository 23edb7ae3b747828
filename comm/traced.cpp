#include "comm/traced.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

namespace trireme {
namespace {

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

struct Traced::Book {
  static constexpr std::size_t ring_size = 256;
  explicit Book(Sink s) : sink(std::move(s)) {}

  std::uint64_t begin(const char* name, std::uint64_t bytes, std::int64_t time) {
    std::lock_guard lock(mutex);
    ++totals.calls;
    totals.bytes += bytes;
    ring[totals.calls % ring_size] = {totals.calls, name, bytes, time, 0};
    return totals.calls;
  }
  void end(const CommCall& call) {
    std::lock_guard lock(mutex);
    CommCall& entry = ring[call.sequence % ring_size];
    if (entry.sequence == call.sequence) entry.end_ns = call.end_ns;
    if (sink) sink(call.name, call.begin_ns, call.end_ns, call.bytes);
  }
  void blocked(std::int64_t ns) {
    std::lock_guard lock(mutex);
    totals.blocked_ns += static_cast<std::uint64_t>(ns);
  }

  mutable std::mutex mutex;
  CommStats totals;
  std::array<CommCall, ring_size> ring;
  const Sink sink;
};

namespace {

class TracedState final : public Work::State {
 public:
  TracedState(Work inner, std::shared_ptr<Traced::Book> book, CommCall call)
      : inner_(std::move(inner)), book_(std::move(book)), call_(call) {}

  bool done() override {
    if (!inner_.done()) return false;
    complete();
    return true;
  }
  void wait() override {
    const Blocked timer{*book_};
    inner_.wait();
    complete();
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const Blocked timer{*book_};
    if (inner_.state() && !inner_.state()->wait_host(timeout)) return false;
    complete();
    return true;
  }
  // What `next` posts is counted by whatever it posts on.
  std::shared_ptr<State> then(std::function<Work()> next) override {
    CommCall continuation = call_;
    continuation.sequence = 0;
    return std::make_shared<TracedState>(inner_.then(std::move(next)), book_, continuation);
  }

 private:
  struct Blocked {
    Traced::Book& book;
    std::int64_t begin = now();
    ~Blocked() { book.blocked(now() - begin); }
  };
  void complete() {
    if (call_.sequence == 0 || completed_.exchange(true)) return;
    call_.end_ns = now();
    book_->end(call_);
  }

  Work inner_;
  std::shared_ptr<Traced::Book> book_;
  CommCall call_;
  std::atomic<bool> completed_{false};
};

}  // namespace

Traced::Traced(Communicator& inner, Sink sink)
    : inner_(inner), book_(std::make_shared<Book>(std::move(sink))) {}
Traced::Traced(std::unique_ptr<Communicator> inner, Sink sink)
    : owned_(std::move(inner)), inner_(*owned_), book_(std::make_shared<Book>(std::move(sink))) {}

CommStats Traced::stats() const {
  std::lock_guard lock(book_->mutex);
  return book_->totals;
}

std::vector<CommCall> Traced::recent() const {
  std::lock_guard lock(book_->mutex);
  std::vector<CommCall> calls;
  const std::uint64_t last = book_->totals.calls;
  for (std::uint64_t s = last - std::min<std::uint64_t>(last, Book::ring_size) + 1; s <= last; ++s)
    calls.push_back(book_->ring[s % Book::ring_size]);
  return calls;
}

Work Traced::count(const char* name, std::uint64_t bytes, const std::function<Work()>& call) {
  const std::int64_t begin = now();
  Work inner = call();  // a refused call is not counted
  const std::uint64_t sequence = book_->begin(name, bytes, begin);
  return Work(
      std::make_shared<TracedState>(std::move(inner), book_, CommCall{sequence, name, bytes, begin, 0}));
}

Work Traced::all_reduce(Buffer inout, Op op) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return count("all_reduce", 2 * (n - 1) * inout.bytes() / n, [&] { return inner_.all_reduce(inout, op); });
}
Work Traced::reduce_scatter(ConstBuffer in, Buffer out, Op op) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return count("reduce_scatter", (n - 1) * out.bytes(), [&] { return inner_.reduce_scatter(in, out, op); });
}
Work Traced::all_gather(ConstBuffer in, Buffer out) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return count("all_gather", (n - 1) * in.bytes(), [&] { return inner_.all_gather(in, out); });
}
Work Traced::all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                        std::span<const std::size_t> recv) {
  std::uint64_t elements = 0;
  for (std::size_t r = 0; r < send.size(); ++r)
    if (r != static_cast<std::size_t>(rank())) elements += send[r];
  return count("all_to_all", elements * size_of(in.dtype),
               [&] { return inner_.all_to_all(in, send, out, recv); });
}
Work Traced::broadcast(Buffer inout, int root) {
  return count("broadcast", size() > 1 ? inout.bytes() : 0, [&] { return inner_.broadcast(inout, root); });
}
Work Traced::barrier() {
  return count("barrier", 0, [&] { return inner_.barrier(); });
}
std::unique_ptr<Communicator> Traced::split(int color, int key) {
  return std::make_unique<Traced>(inner_.split(color, key), book_->sink);
}

}  // namespace trireme

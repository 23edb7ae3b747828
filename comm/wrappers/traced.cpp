#include "comm/wrappers/traced.h"

#include <algorithm>
#include <utility>

namespace trireme {
namespace {

// The host's time inside a wait, and that it is there.
class Waiting {
 public:
  Waiting(CommLog& log, std::uint64_t sequence) : log_(log), begin_(steady_now_ns()) { log_.wait_begins(sequence); }
  ~Waiting() { log_.wait_ends(steady_now_ns() - begin_); }

 private:
  CommLog& log_;
  const std::int64_t begin_;
};

// While it lives, this thread posts from a then().
thread_local bool continued = false;
class Continued {
 public:
  Continued() : before_(std::exchange(continued, true)) {}
  ~Continued() { continued = before_; }

 private:
  const bool before_;
};

class TracedState final : public Work::State {
 public:
  TracedState(Work inner, std::shared_ptr<CommLog> log, std::shared_ptr<Traced::Sink> sink, const CommCall& call)
      : inner_(std::move(inner)), log_(std::move(log)), sink_(std::move(sink)), call_(call) {}

  bool done() override {
    if (!inner_.done()) return false;
    complete();
    return true;
  }
  bool settled() override { return inner_.settled(); }
  void wait() override {
    const Waiting here(*log_, call_.sequence);
    inner_.wait();
    complete(inner_.settled());
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const Waiting here(*log_, call_.sequence);
    if (inner_.state() && !inner_.state()->wait_host(timeout)) return false;
    complete();
    return true;
  }
  // What `next` posts is counted by whatever it posts on.
  std::shared_ptr<State> then(std::function<Work()> next) override {
    auto marked = [next = std::move(next)] {
      const Continued here;
      return next();
    };
    auto continuation = std::make_shared<TracedState>(inner_.then(std::move(marked)), log_, sink_, call_);
    continuation->completed_ = true;
    return continuation;
  }

 private:
  // ended: where only the caller's stream waits, the log asks the operation itself, or nobody would see it hang.
  void complete(bool ended = true) {
    if (completed_.exchange(true)) return;
    call_.end_ns = steady_now_ns();
    if (ended) log_->end(call_);
    if (sink_) (*sink_)(call_.name, call_.begin_ns, call_.end_ns, call_.bytes);
  }

  Work inner_;
  std::shared_ptr<CommLog> log_;
  std::shared_ptr<Traced::Sink> sink_;
  CommCall call_;
  std::atomic<bool> completed_{false};  // and told
};

std::shared_ptr<Traced::Sink> shared(Traced::Sink sink) {
  return sink ? std::make_shared<Traced::Sink>(std::move(sink)) : nullptr;
}

}  // namespace

Traced::Traced(Communicator& inner, Sink sink, std::string name)
    : Wrapper(inner),
      sink_(shared(std::move(sink))),
      recorder_(std::make_shared<FlightRecorder>()),
      log_(std::make_shared<CommLog>(std::move(name), inner.rank(), inner.size())) {
  recorder_->add(log_);
}

Traced::Traced(std::unique_ptr<Communicator> inner, Sink sink, std::string name)
    : Traced(*inner, std::move(sink), std::move(name)) {
  owned_ = std::move(inner);
}

Traced::Traced(std::unique_ptr<Communicator> inner, const Traced& parent, std::string name, Sink sink, Counts counts)
    : Wrapper(std::move(inner)),
      sink_(shared(std::move(sink))),
      recorder_(parent.recorder_),
      log_(std::make_shared<CommLog>(std::move(name), inner_.rank(), inner_.size())) {
  counts == Counts::for_parent ? recorder_->add_part(log_, *parent.log_) : recorder_->add(log_);
}

template <class Post>
Work Traced::record(const char* name, const ConstBuffer& same, std::uint64_t bytes, Post&& post) {
  CommCall call;
  call.name = name;
  call.bytes = bytes;
  call.begin_ns = steady_now_ns();
  call.count = same.count;
  call.dtype = same.dtype;
  call.site = CallSite::here();
  call.continued = continued;
  call.sequence = log_->begin(call);
  Work inner;
  try {
    inner = post();
  } catch (...) {
    log_->refused(call.sequence);
    throw;
  }
  log_->posted(call.sequence, inner.state());
  return Work(std::make_shared<TracedState>(std::move(inner), log_, sink_, call));
}

Work Traced::all_reduce(Buffer inout, Op op) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return record("all_reduce", inout, 2 * (n - 1) * inout.bytes() / n, [&] { return inner_.all_reduce(inout, op); });
}
Work Traced::reduce_scatter(ConstBuffer in, Buffer out, Op op) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return record("reduce_scatter", out, (n - 1) * out.bytes(), [&] { return inner_.reduce_scatter(in, out, op); });
}
Work Traced::all_gather(ConstBuffer in, Buffer out) {
  const std::uint64_t n = static_cast<std::uint64_t>(size());
  return record("all_gather", in, (n - 1) * in.bytes(), [&] { return inner_.all_gather(in, out); });
}
Work Traced::all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                        std::span<const std::size_t> recv) {
  std::uint64_t elements = 0;
  for (std::size_t r = 0; r < send.size(); ++r)
    if (r != static_cast<std::size_t>(rank())) elements += send[r];
  return record("all_to_all", in, elements * size_of(in.dtype), [&] { return inner_.all_to_all(in, send, out, recv); });
}
Work Traced::broadcast(Buffer inout, int root) {
  return record("broadcast", inout, size() > 1 ? inout.bytes() : 0, [&] { return inner_.broadcast(inout, root); });
}
Work Traced::barrier() {
  return record("barrier", ConstBuffer{}, 0, [&] { return inner_.barrier(); });
}

template <class Step>
auto Traced::record_blocking(const char* name, std::size_t bytes, Step&& step) {
  CommCall call;
  call.name = name;
  call.begin_ns = steady_now_ns();
  call.count = bytes;
  call.site = CallSite::here();
  call.sequence = log_->begin(call);
  try {
    const Waiting here(*log_, call.sequence);
    auto made = step();
    call.end_ns = steady_now_ns();
    log_->end(call);
    return made;
  } catch (...) {
    log_->refused(call.sequence);
    throw;
  }
}

CommStats Traced::stats() const { return log_->tally()->sum(); }
std::vector<CommCall> Traced::recent() const {
  std::vector<CommCall> calls;
  for (const auto& log : recorder_->logs()) {
    if (!log_->tally()->holds(*log->tally())) continue;
    const auto more = log->recent();
    calls.insert(calls.end(), more.begin(), more.end());
  }
  std::stable_sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) { return a.begin_ns < b.begin_ns; });
  return calls;
}

std::unique_ptr<Traced> Traced::derive(std::string name, const Make& make, Sink sink) {
  const auto step = [&] { return make(inner_); };
  return std::unique_ptr<Traced>(
      new Traced(record_blocking("split", 0, step), *this, std::move(name), std::move(sink), Counts::for_itself));
}
std::unique_ptr<Communicator> Traced::split(int color, int key) {
  const std::string name = log_->name + "/" + std::to_string(++splits_) + "." + std::to_string(color);
  const auto step = [&] { return inner_.split(color, key); };
  return std::unique_ptr<Traced>(
      new Traced(record_blocking("split", 0, step), *this, name, sink_ ? *sink_ : Sink(), Counts::for_parent));
}
std::shared_ptr<void> Traced::allocate(std::size_t bytes) {
  return record_blocking("allocate", bytes, [&] { return inner_.allocate(bytes); });
}

std::function<void()> signs_of(Communicator& ranks) {
  const auto* traced = dynamic_cast<Traced*>(&ranks);
  if (!traced) return [] {};
  return [recorder = traced->recorder()] { recorder->sign(); };
}

}  // namespace trireme

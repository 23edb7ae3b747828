#include "comm/local/loopback.h"

#include "comm/backends.h"
#include "comm/engine/arguments.h"
#include "comm/engine/engine.h"
#include "comm/error.h"
#include "comm/flight_recorder.h"
#include "comm/reduce.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <thread>

namespace trireme {
namespace {

class LoopbackOp;

// What the ranks of one group share. Touched only under the engine's progress lock, except `closed`.
struct Hub {
  Hub(std::shared_ptr<Engine> e, int n) : engine(std::move(e)), posted(n, nullptr), queues(n), closed(n) {
    for (auto& queue : queues) {
      queue = std::make_shared<Queue>(engine);
    }
  }
  int size() const { return static_cast<int>(posted.size()); }

  std::shared_ptr<Engine> engine;
  std::vector<LoopbackOp*> posted;  // the head of each rank's queue, once it runs
  std::vector<std::shared_ptr<Queue>> queues;
  std::vector<std::atomic<std::int64_t>> closed;  // since when the rank's communicator is gone, ns; 0: it is there
  int arrived = 0;
};

std::unique_ptr<Communicator> make_member(std::shared_ptr<Hub> hub, int rank);

// One rank's part of a collective. The last rank to arrive carries it out for all of them.
class LoopbackOp final : public Operation {
 public:
  LoopbackOp(std::shared_ptr<Hub> hub, int rank, Collective kind) : hub_(std::move(hub)), rank_(rank), kind_(kind) {}

  Step progress() override;

  ConstBuffer in;
  Buffer out;
  Op op = Op::sum;
  int root = 0;
  std::vector<std::size_t> send, recv;
  int color = 0, key = 0;
  std::shared_ptr<Hub> child;
  int child_rank = 0;

 private:
  void execute();
  void compare(const LoopbackOp& first) const;
  void check_closed() const;
  void all_reduce(std::vector<LoopbackOp*>& ranks);
  void reduce_scatter(std::vector<LoopbackOp*>& ranks);
  void all_gather(std::vector<LoopbackOp*>& ranks);
  void all_to_all(std::vector<LoopbackOp*>& ranks);
  void split(std::vector<LoopbackOp*>& ranks);

  std::shared_ptr<Hub> hub_;
  const int rank_;
  const Collective kind_;
  bool arrived_ = false, executed_ = false;
  std::exception_ptr failed_;
};

Operation::Step LoopbackOp::progress() {
  if (executed_) {
    if (failed_) std::rethrow_exception(failed_);
    return Step::complete;
  }
  if (arrived_) {
    check_closed();
    return Step::blocked;
  }
  arrived_ = true;
  hub_->posted[rank_] = this;
  if (++hub_->arrived < hub_->size()) {
    check_closed();
    return Step::blocked;
  }
  std::exception_ptr failed;
  try {
    execute();
  } catch (...) {
    failed = std::current_exception();
  }
  for (LoopbackOp*& other : hub_->posted) {
    other->executed_ = true;
    other->failed_ = failed;
    other = nullptr;
  }
  hub_->arrived = 0;
  if (failed) std::rethrow_exception(failed);
  return Step::complete;
}

// A rank that has left can never arrive: better an error than waiting for ever.
void LoopbackOp::check_closed() const {
  for (int r = 0; r < hub_->size(); ++r)
    if (const std::int64_t since = hub_->closed[r].load();
        since != 0 && since <= steady_now_ns() && !hub_->posted[r] && hub_->queues[r]->empty())
      throw CommError(place({rank_, hub_->size()}),
                      "waits in " + std::string(name(kind_)) + " but rank " + std::to_string(r) + " has ended",
                      "every rank must make the same calls");
}

void LoopbackOp::compare(const LoopbackOp& first) const {
  const auto differ = [&](const char* what, const std::string& theirs, const std::string& mine) {
    throw CommError("",
                    "rank 0 and rank " + std::to_string(rank_) + " differ in the " + what +
                        " of a collective: " + theirs + " and " + mine,
                    "every rank must make the same calls");
  };
  if (kind_ != first.kind_) differ("operation", std::string(name(first.kind_)), std::string(name(kind_)));
  if (out.dtype != first.out.dtype) differ("dtype", std::string(name(first.out.dtype)), std::string(name(out.dtype)));
  if (kind_ != Collective::all_to_all && out.count != first.out.count)
    differ("count", std::to_string(first.out.count), std::to_string(out.count));
  if (op != first.op) differ("reduction", std::string(name(first.op)), std::string(name(op)));
  if (root != first.root) differ("root", std::to_string(first.root), std::to_string(root));
}

void LoopbackOp::execute() {
  auto& ranks = hub_->posted;
  for (LoopbackOp* other : ranks) other->compare(*ranks[0]);
  switch (kind_) {
    case Collective::all_reduce:
      return all_reduce(ranks);
    case Collective::reduce_scatter:
      return reduce_scatter(ranks);
    case Collective::all_gather:
      return all_gather(ranks);
    case Collective::all_to_all:
      return all_to_all(ranks);
    case Collective::broadcast:
      for (LoopbackOp* to : ranks)
        if (to->rank_ != root && out.count > 0) std::memcpy(to->out.data, ranks[root]->out.data, out.bytes());
      return;
    case Collective::barrier:
    case Collective::allocate:
      return;
    case Collective::split:
      return split(ranks);
  }
}

void LoopbackOp::all_reduce(std::vector<LoopbackOp*>& ranks) {
  if (out.count == 0) return;
  std::vector<const void*> in;
  for (LoopbackOp* r : ranks) in.push_back(r->out.data);
  reduce(op, out.dtype, ranks[0]->out.data, in, out.count);
  for (LoopbackOp* to : ranks)
    if (to != ranks[0]) std::memcpy(to->out.data, ranks[0]->out.data, out.bytes());
}

// Results go through `result` where a rank's output may be another rank's or its own input.
void LoopbackOp::reduce_scatter(std::vector<LoopbackOp*>& ranks) {
  const std::size_t bytes = out.bytes();
  if (bytes == 0) return;
  std::vector<std::byte> result(bytes * ranks.size());
  for (std::size_t block = 0; block < ranks.size(); ++block) {
    std::vector<const void*> in;
    for (LoopbackOp* r : ranks) in.push_back(at(r->in.data, block * bytes));
    reduce(op, out.dtype, result.data() + block * bytes, in, out.count);
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) std::memcpy(ranks[r]->out.data, result.data() + r * bytes, bytes);
}

void LoopbackOp::all_gather(std::vector<LoopbackOp*>& ranks) {
  const std::size_t bytes = in.bytes();
  if (bytes == 0) return;
  std::vector<std::byte> result(bytes * ranks.size());
  for (std::size_t r = 0; r < ranks.size(); ++r) std::memcpy(result.data() + r * bytes, ranks[r]->in.data, bytes);
  for (LoopbackOp* to : ranks) std::memcpy(to->out.data, result.data(), result.size());
}

void LoopbackOp::all_to_all(std::vector<LoopbackOp*>& ranks) {
  std::vector<std::vector<std::byte>> results;
  std::vector<std::vector<std::size_t>> offsets;
  for (LoopbackOp* from : ranks) offsets.push_back(byte_offsets(from->send, from->in.dtype));
  for (LoopbackOp* to : ranks) {
    auto& result = results.emplace_back();
    for (LoopbackOp* from : ranks) {
      const std::size_t count = from->send[to->rank_];
      if (count != to->recv[from->rank_])
        throw CommError("", "all_to_all: rank " + std::to_string(from->rank_) + " sends " + std::to_string(count) +
                                " elements to rank " + std::to_string(to->rank_) + ", which expects " +
                                std::to_string(to->recv[from->rank_]));
      if (count == 0) continue;
      const std::byte* begin = at(from->in.data, offsets[from->rank_][to->rank_]);
      result.insert(result.end(), begin, begin + count * size_of(from->in.dtype));
    }
  }
  for (std::size_t r = 0; r < ranks.size(); ++r)
    if (!results[r].empty()) std::memcpy(ranks[r]->out.data, results[r].data(), results[r].size());
}

void LoopbackOp::split(std::vector<LoopbackOp*>& ranks) {
  std::map<int, std::vector<LoopbackOp*>> groups;
  for (LoopbackOp* r : ranks) groups[r->color].push_back(r);
  for (auto& [color, members] : groups) {
    std::stable_sort(members.begin(), members.end(), [](auto* a, auto* b) { return a->key < b->key; });
    auto hub = std::make_shared<Hub>(hub_->engine, static_cast<int>(members.size()));
    for (std::size_t r = 0; r < members.size(); ++r) {
      members[r]->child = hub;
      members[r]->child_rank = static_cast<int>(r);
    }
  }
}

class Loopback final : public Communicator {
 public:
  Loopback(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {
    hub_->engine->add(hub_->queues[rank_]);
  }
  ~Loopback() override {
    // While an exception unwinds this rank, its own error is about to be told: that one is to be the first.
    constexpr std::int64_t grace = 200'000'000;
    hub_->closed[rank_].store(steady_now_ns() + (std::uncaught_exceptions() > 0 ? grace : 0));
    hub_->engine->retire(*hub_->queues[rank_]);
    hub_->engine->changed();
  }
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }

  Work all_reduce(Buffer inout, Op op) override {
    check_all_reduce(me(), inout);
    auto o = make(Collective::all_reduce);
    o->out = inout;
    o->op = op;
    return push(std::move(o));
  }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    check_reduce_scatter(me(), in, out);
    auto o = make(Collective::reduce_scatter);
    o->in = in;
    o->out = out;
    o->op = op;
    return push(std::move(o));
  }
  Work all_gather(ConstBuffer in, Buffer out) override {
    check_all_gather(me(), in, out);
    auto o = make(Collective::all_gather);
    o->in = in;
    o->out = out;
    return push(std::move(o));
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    check_all_to_all(me(), in, send, out, recv);
    auto o = make(Collective::all_to_all);
    o->in = in;
    o->out = out;
    o->send.assign(send.begin(), send.end());
    o->recv.assign(recv.begin(), recv.end());
    return push(std::move(o));
  }
  Work broadcast(Buffer inout, int root) override {
    check_broadcast(me(), inout, root);
    auto o = make(Collective::broadcast);
    o->out = inout;
    o->root = root;
    return push(std::move(o));
  }
  Work barrier() override { return push(make(Collective::barrier)); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    auto o = make(Collective::split);
    o->color = color;
    o->key = key;
    push(o).wait();
    return make_member(o->child, o->child_rank);
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    barrier().wait();
    return allocate_private(bytes);
  }
  void abort(int code, std::string_view why) noexcept override {
    try {
      hub_->engine->fail(std::make_exception_ptr(Error(static_cast<ExitCode>(code), place(me()), why)));
    } catch (...) {
      std::terminate();
    }
  }
  std::string_view backend() const override { return "loopback"; }

 private:
  Member me() const { return {rank_, hub_->size()}; }
  std::shared_ptr<LoopbackOp> make(Collective kind) { return std::make_shared<LoopbackOp>(hub_, rank_, kind); }
  Work push(std::shared_ptr<LoopbackOp> operation) { return hub_->queues[rank_]->push(std::move(operation), 0); }

  std::shared_ptr<Hub> hub_;
  const int rank_;
};

std::unique_ptr<Communicator> make_member(std::shared_ptr<Hub> hub, int rank) {
  if (hub->size() > 1) return std::make_unique<Loopback>(std::move(hub), rank);
  auto engine = hub->engine;
  return make_self("loopback", [engine](int code, std::string_view why) {
    engine->fail(std::make_exception_ptr(Error(static_cast<ExitCode>(code), "rank 0 of 1", why)));
  });
}

}  // namespace

void run_loopback(int n, const std::function<void(Communicator&)>& rank_main) {
  if (n < 1) throw UsageError("run_loopback", "needs at least one rank");
  auto engine = std::make_shared<Engine>(Engine::Source::posts);
  auto hub = std::make_shared<Hub>(engine, n);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::unique_ptr<Communicator>> members;
  for (int rank = 0; rank < n; ++rank) members.push_back(make_member(hub, rank));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < n; ++rank)
    threads.emplace_back([&, rank] {
      try {
        rank_main(*members[rank]);
      } catch (...) {
        {
          std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
        }
        engine->fail(std::make_exception_ptr(CommError("", "rank " + std::to_string(rank) + " failed")));
      }
      members[rank].reset();
    });
  for (auto& thread : threads) thread.join();
  engine->close();
  if (first) std::rethrow_exception(first);
  engine->rethrow_failure();
}

namespace {
const Communicators::Entry loopback_entry({"loopback", Ranks::threads, run_loopback});
}  // namespace

}  // namespace trireme

#include "comm/wrappers/checked.h"

#include "comm/engine/arguments.h"
#include "comm/error.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <vector>

namespace trireme {

struct Checked::Fingerprint {
  std::int64_t operation = 0, dtype = 0, count = 0, op = 0, root = 0;
};

namespace {

constexpr std::size_t fields = 5;

std::string value_text(std::size_t field, std::int64_t v) {
  switch (field) {
    case 0:
      return std::string(name(static_cast<Collective>(v)));
    case 1:
      return std::string(name(static_cast<DType>(v)));
    case 3:
      return std::string(name(static_cast<Op>(v)));
    default:
      return std::to_string(v);
  }
}

constexpr const char* field_names[fields] = {"operation", "dtype", "count", "reduction", "root"};

}  // namespace

// What all ranks said: per rank the fields, then for all_to_all what it sends to and expects from each rank.
struct Checked::Exchange {
  std::vector<std::int64_t> mine, all;
  Member me;
  std::uint64_t sequence = 0;

  void verify() const {
    const std::size_t n = static_cast<std::size_t>(me.size), width = mine.size();
    for (std::size_t field = 0; field < fields; ++field)
      for (std::size_t r = 1; r < n; ++r)
        if (all[r * width + field] != all[field])
          fail(0, r,
               std::string("in the ") + field_names[field] + ": " + value_text(field, all[field]) + " and " +
                   value_text(field, all[r * width + field]));
    if (static_cast<Collective>(mine[0]) != Collective::all_to_all) return;
    for (std::size_t from = 0; from < n; ++from)
      for (std::size_t to = 0; to < n; ++to) {
        const std::int64_t sent = all[from * width + fields + to], expected = all[to * width + fields + n + from];
        if (sent != expected)
          fail(from, to,
               "in the count: rank " + std::to_string(from) + " sends " + std::to_string(sent) + " elements to rank " +
                   std::to_string(to) + ", which expects " + std::to_string(expected));
      }
  }
  [[noreturn]] void fail(std::size_t a, std::size_t b, const std::string& what) const {
    throw CommError(place(me),
                    "collective " + std::to_string(sequence) + " (" +
                        std::string(name(static_cast<Collective>(mine[0]))) + " here): rank " + std::to_string(a) +
                        " and rank " + std::to_string(b) + " differ " + what,
                    "every rank must make the same calls");
  }
};

// Posts may come from the caller and, inside then(), from the thread that makes progress. A comparison that
// is still queued when the communicator goes (only while an exception is on its way) must not touch it any
// more.
struct Checked::Gate {
  std::mutex mutex;
  bool open = true, stuck = false;
  std::uint64_t posted = 0,
                sequence = 0;  // of the last collective posted and compared, the same on all ranks
  Work last;
};

// A collective that is compared first. While another rank has not come to it, waiting for it is told.
class Checked::State final : public Work::State {
 public:
  State(Work gathered, Work compared, std::shared_ptr<Gate> gate, std::shared_ptr<Parley> parley,
        const Parley::Spot& spot)
      : gathered_(std::move(gathered)),
        compared_(std::move(compared)),
        gate_(std::move(gate)),
        parley_(std::move(parley)),
        spot_(spot) {}

  bool done() override { return compared_.done(); }
  bool settled() override { return compared_.settled(); }
  void wait() override {
    met(Clock::time_point::max());
    compared_.wait();
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const auto end = Clock::now() + timeout;
    if (!met(end)) return false;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    return !compared_.state() || compared_.state()->wait_host(std::max(left, std::chrono::milliseconds(0)));
  }
  std::shared_ptr<Work::State> then(std::function<Work()> next) override {
    return std::make_shared<State>(gathered_, compared_.then(std::move(next)), gate_, parley_, spot_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds patience{1000}, slice{100};

  // Waits until every rank has come; false when it is `end`.
  bool met(Clock::time_point end) {
    const auto begin = Clock::now();
    for (auto now = begin;; now = Clock::now()) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(std::min(end - now, Clock::duration(slice)));
      if (gathered_.state()->wait_host(std::max(left, std::chrono::milliseconds(0)))) return true;
      if (Clock::now() >= end) return false;
      if (Clock::now() - begin < patience) continue;
      try {
        parley_->waits(spot_);
      } catch (...) {
        std::lock_guard lock(gate_->mutex);
        gate_->stuck = true;
        throw;
      }
    }
  }

  Work gathered_, compared_;
  std::shared_ptr<Gate> gate_;
  std::shared_ptr<Parley> parley_;
  const Parley::Spot spot_;
};

Checked::Checked(Communicator& inner, std::string name, std::shared_ptr<Parley> parley)
    : Wrapper(inner),
      name_(std::move(name)),
      parley_(parley ? std::move(parley) : std::make_shared<Parley>(inner.split(0, inner.rank()))),
      side_(inner.split(0, inner.rank())),
      gate_(std::make_shared<Gate>()) {}
Checked::Checked(std::unique_ptr<Communicator> inner, std::string name, std::shared_ptr<Parley> parley)
    : Checked(*inner, std::move(name), std::move(parley)) {
  owned_ = std::move(inner);
}

Checked::~Checked() {
  if (std::uncaught_exceptions() == 0 && !gate_->stuck) {
    try {
      gate_->last.then([] { return Work(); }).wait();  // behind all comparisons
    } catch (...) {                                    // the caller had it from its own Work
    }
  }
  Work last;  // ends after the lock, and not with the gate, which it refers to
  std::lock_guard lock(gate_->mutex);
  gate_->open = false;
  std::swap(last, gate_->last);
}

Work Checked::compare(const Fingerprint& f, std::span<const std::size_t> send, std::span<const std::size_t> recv,
                      std::function<Work()> next, bool on_device) {
  auto exchange = std::make_shared<Exchange>();
  exchange->me = {rank(), size()};
  // The width must not depend on what is compared: room for the counts always, zero if unused.
  exchange->mine.assign(fields + 2 * static_cast<std::size_t>(size()), 0);
  const std::int64_t values[fields] = {f.operation, f.dtype, f.count, f.op, f.root};
  std::copy(values, values + fields, exchange->mine.begin());
  std::copy(send.begin(), send.end(), exchange->mine.begin() + fields);
  std::copy(recv.begin(), recv.end(), exchange->mine.begin() + fields + size());
  exchange->all.resize(exchange->mine.size() * static_cast<std::size_t>(size()));
  // On the side communicator's queue, so that posting never blocks and the order stays the same on all ranks.
  Work gathered = side_->all_gather({exchange->mine.data(), exchange->mine.size(), DType::i64},
                                    {exchange->all.data(), exchange->all.size(), DType::i64});
  if (on_device && inner_.capturable()) {
    // NCCL wants one order over all communicators: the caller's, not the one in which comparisons end.
    gathered.wait();
    {
      std::lock_guard lock(gate_->mutex);
      exchange->sequence = ++gate_->sequence;
      exchange->verify();
    }
    return next();
  }
  Work compared = gathered.then([exchange, next = std::move(next), gate = gate_] {
    std::lock_guard lock(gate->mutex);
    if (!gate->open) throw CommError(place(exchange->me), "a collective was still pending when its communicator ended");
    exchange->sequence = ++gate->sequence;
    exchange->verify();
    return next();
  });
  Parley::Spot spot;
  name_.copy(spot.communicator, sizeof spot.communicator - 1);
  spot.operation = f.operation;
  spot.dtype = f.dtype;
  spot.count = f.count;
  std::lock_guard lock(gate_->mutex);
  spot.sequence = static_cast<std::int64_t>(++gate_->posted);
  gate_->last = compared;
  if (!gathered.state()) return compared;
  return Work(std::make_shared<State>(gathered, compared, gate_, parley_, spot));
}

namespace {
std::int64_t number(Collective c) { return static_cast<std::int64_t>(c); }
std::int64_t number(DType t) { return static_cast<std::int64_t>(t); }
std::int64_t number(Op op) { return static_cast<std::int64_t>(op); }
std::int64_t number(std::size_t n) { return static_cast<std::int64_t>(n); }
}  // namespace

Work Checked::all_reduce(Buffer inout, Op op) {
  return compare(
      {number(Collective::all_reduce), number(inout.dtype), number(inout.count), number(op), 0}, {}, {},
      [this, inout, op] { return inner_.all_reduce(inout, op); }, !inout.place.host());
}
Work Checked::reduce_scatter(ConstBuffer in, Buffer out, Op op) {
  return compare(
      {number(Collective::reduce_scatter), number(out.dtype), number(out.count), number(op), 0}, {}, {},
      [this, in, out, op] { return inner_.reduce_scatter(in, out, op); }, !out.place.host());
}
Work Checked::all_gather(ConstBuffer in, Buffer out) {
  return compare(
      {number(Collective::all_gather), number(in.dtype), number(in.count), 0, 0}, {}, {},
      [this, in, out] { return inner_.all_gather(in, out); }, !out.place.host());
}
Work Checked::all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                         std::span<const std::size_t> recv) {
  check_all_to_all({rank(), size(), out.place.device}, in, send, out, recv);
  std::vector<std::size_t> s(send.begin(), send.end()), r(recv.begin(), recv.end());
  return compare(
      {number(Collective::all_to_all), number(in.dtype), 0, 0, 0}, send, recv,
      [this, in, out, s = std::move(s), r = std::move(r)] { return inner_.all_to_all(in, s, out, r); },
      !out.place.host());
}
Work Checked::broadcast(Buffer inout, int root) {
  return compare(
      {number(Collective::broadcast), number(inout.dtype), number(inout.count), 0, root}, {}, {},
      [this, inout, root] { return inner_.broadcast(inout, root); }, !inout.place.host());
}
Work Checked::barrier() {
  return compare(
      {number(Collective::barrier), 0, 0, 0, 0}, {}, {}, [this] { return inner_.barrier(); }, true);
}
std::unique_ptr<Communicator> Checked::split(int color, int key) {
  compare({number(Collective::split), 0, 0, 0, 0}, {}, {}, [] { return Work(); }).wait();
  const std::string child = name_ + "/" + std::to_string(++splits_) + "." + std::to_string(color);
  return std::make_unique<Checked>(inner_.split(color, key), child, parley_);
}
std::shared_ptr<void> Checked::allocate(std::size_t bytes) {
  compare({number(Collective::allocate), 0, number(bytes), 0, 0}, {}, {}, [] { return Work(); }).wait();
  return inner_.allocate(bytes);
}

}  // namespace trireme

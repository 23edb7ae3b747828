// A recipe that goes wrong on purpose, at one step of one rank: what the watchdog and the straggler report are
// tested with. Part of the program `trireme_faulty` only.
#include "comm/call_site.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/nn/parameters.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <fstream>
#include <numeric>
#include <thread>

namespace trireme {
namespace {

struct Fault {
  std::string kind = "none";
  std::int64_t rank = 0, at = 3, steps = 1;
  double ms = 0;

  void fields(Fields& f) {
    f.choice("kind", kind,
             {"none", "stop", "stop_in_collective", "stop_in_loader", "block_in_loader", "spin", "other_communicator",
              "slow", "nan"},
             "what goes wrong");
    f("rank", rank, "where", {.min = 0});
    f("at", at, "in which step, or at which read, from 0", {.min = 0});
    f("steps", steps, "how many steps have a loss that is not finite", {.min = 1});
    f("ms", ms, "how much slower each step is", {.min = 0});
  }
  // Now, which the test reads to know how long it took to be noticed.
  static void mark() {
    std::ofstream("fault.time")
        << std::fixed << std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
};

class Numbers : public Dataset {
 public:
  Numbers(const Fault& fault, int rank) : fault_(fault), mine_(fault.rank == rank) {}
  std::int64_t size() const override { return 4096; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    const bool now = mine_ && fault_.at == reads_++;
    if (now && fault_.kind == "stop_in_loader") Fault::mark(), raise(SIGSTOP);
    if (now && fault_.kind == "block_in_loader") {
      Fault::mark();
      for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    Batch batch;
    batch.ids.assign(ids.begin(), ids.end());
    batch.columns["x"] =
        at::tensor(at::ArrayRef<std::int64_t>(ids.data(), ids.size()), at::kLong).to(at::kFloat).div_(4096);
    return batch;
  }

 private:
  const Fault& fault_;
  const bool mine_;
  mutable std::int64_t reads_ = 0;
};

// One weight that learns a mean.
class Faulty : public Recipe {
 public:
  void fields(Fields& f) override {
    f.group("fault", fault_, "what goes wrong");
    f("work_ms", work_ms_, "how long a step computes", {.min = 0});
  }
  void setup(Context& c) override {
    data_ = std::make_unique<Numbers>(fault_, c.rank());
    nn::Parameters params(std::uint64_t(c.config().seed), c.param_type(), c.device());
    weight_ = params.constant("weight", {1024}, 0);
    params_ = params.all();
  }
  std::vector<Param> parameters() override { return params_; }
  std::vector<std::string> communicators() const override { return {"features"}; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override {
    std::vector<std::int64_t> ids(4096);
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }

  at::Tensor loss(const Batch& batch, Context& c) override {
    const CallSite here("faulty: loss");
    const bool mine = c.rank() == fault_.rank, now = mine && c.now.step == fault_.at;
    compute(work_ms_ + (mine && fault_.kind == "slow" ? fault_.ms : 0));
    if (now && fault_.kind == "stop") Fault::mark(), raise(SIGSTOP);
    if (now && fault_.kind == "spin") {
      Fault::mark();
      for (std::atomic<int> i = 0;; ++i) {
      }
    }
    // What every rank does with its features.
    at::Tensor features = at::ones({1 << 20}, at::kFloat);
    const bool other = now && fault_.kind == "other_communicator";
    // Writing the mark takes long enough for the collective to end: before it.
    const bool inside = now && fault_.kind == "stop_in_collective";
    if (other || inside) Fault::mark();
    Work work = c.comm(other ? "control" : "features").all_reduce(buffer_of(features), Op::sum);
    if (inside) raise(SIGSTOP);
    work.wait();
    const bool bad = mine && fault_.kind == "nan" && c.now.step >= fault_.at && c.now.step < fault_.at + fault_.steps;
    return (weight_ - batch.columns.at("x").mean()).square().mean() * (bad ? std::nan("") : 1.0) / double(c.size());
  }

 private:
  static void compute(double ms) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double, std::milli>(ms);
    while (std::chrono::steady_clock::now() < end) {
    }
  }
  Fault fault_;
  double work_ms_ = 0;
  std::unique_ptr<Numbers> data_;
  at::Tensor weight_;
  std::vector<Param> params_;
};

const Recipes::Entry registered("faulty", [] { return std::make_unique<Faulty>(); });

}  // namespace
}  // namespace trireme

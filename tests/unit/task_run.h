// The executor of a sweep on a tiny random Llama, on loopback ranks, with what it sent.
#pragma once
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "comm/wrappers/wrapper.h"
#include "trainers/sweep/executor.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::sweep {

inline CausalLm tiny(at::ScalarType type = at::kFloat) {
  CausalLmConfig c;
  c.family = "llama";
  c.vocab = 61, c.hidden = 32, c.intermediate = 48, c.layers = 4, c.heads = 4, c.kv_heads = 2, c.head_dim = 8;
  c.eps = 1e-5;
  return CausalLm::random(c, 3, at::kCPU, type);
}

// As a task has it.
inline Backbone backbone_of(const CausalLm& model, bool shared) {
  std::map<std::string, at::Tensor> values;
  for (const auto& [weight, value] : model.weights()) values[weight.name] = value;
  const LmWeights weights{model.config(), [values](const LmWeight& w) { return values.at(w.name); },
                          at::TensorOptions(model.device()).dtype(model.dtype())};
  return shared ? Backbone{without_layers(weights), weights.read} : Backbone{model};
}

// Arithmetic sequences; the step is told by the first three ids, which do not count.
inline Example sequence(std::int64_t i) {
  Example e;
  for (std::int64_t k = 0; k < 7 + i % 5; ++k) {
    e.ids.push_back(std::int32_t((i * 17 + k * (1 + i % 4)) % 61));
    e.mask.push_back(k >= 3);
  }
  return e;
}

inline Instructions sequences(bool pairs) {
  Instructions d;
  for (std::int64_t i = 0; i < 30; ++i) {
    const Example e = sequence(i);
    Example wrong = e;
    wrong.ids.back() = (wrong.ids.back() + 5) % 61;
    if (pairs)
      (i < 24 ? d.train_pairs : d.validation_pairs).push_back({e, wrong});
    else
      (i < 24 ? d.train : d.validation).push_back(e);
  }
  return d;
}

struct Result {
  TaskOutcome outcome;
  std::map<std::string, std::size_t> counts = {};  // of rank 0: bytes it sent
  std::string losses, decisions;
  std::int64_t replayed = 0;                                          // passes
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> best;  // by rank: of the jobs it ended with
  bool pipelined = false;
};

inline std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Bytes sent by kind of collective and type of element, over all communicators of a rank.
using Counts = std::map<std::string, std::size_t>;
class Counting : public Wrapper {
 public:
  Counting(Communicator& inner, Counts& counts) : Wrapper(inner), counts_(counts) {}
  Counting(std::unique_ptr<Communicator> inner, Counts& counts) : Wrapper(std::move(inner)), counts_(counts) {}
  Work all_reduce(Buffer b, Op op) override { return add("all_reduce", b), inner_.all_reduce(b, op); }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    return add("reduce_scatter", in), inner_.reduce_scatter(in, out, op);
  }
  Work all_gather(ConstBuffer in, Buffer out) override { return add("all_gather", in), inner_.all_gather(in, out); }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    return add("all_to_all", in), inner_.all_to_all(in, send, out, recv);
  }
  Work broadcast(Buffer b, int root) override { return add("broadcast", b), inner_.broadcast(b, root); }
  Work barrier() override { return inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<Counting>(inner_.split(color, key), counts_);
  }

 private:
  void add(const char* what, const ConstBuffer& b) { counts_[what + (" " + std::string(name(b.dtype)))] += b.bytes(); }
  Counts& counts_;
};

struct TaskRun : ::testing::Test {
  std::filesystem::path dir = std::filesystem::path(::testing::TempDir()) / ("sweep_run_" + std::to_string(getpid()));
  SweepConfig sweep;
  TaskConfig task;
  std::optional<Instructions> own_data;
  int folders = 0;

  void SetUp() override {
    at::set_num_threads(1);
    std::filesystem::create_directories(dir);
    sweep.train.epochs = 2;
    sweep.train.weight_decay = 0.1;
    sweep.early_exit.warmup_ratio = 0.25;
    sweep.early_exit.eval_fraction = 0.1;
    sweep.checkpoint_every = 0;
    task.name = "t";
    task.search.lr = {1e-3, 2e-2};
    task.search.rank = {2, 4};
    task.search.batch_size = {2, 4};
  }
  void TearDown() override { std::filesystem::remove_all(dir); }

  std::optional<Result> run(Communicator& ranks, const std::string& folder, const std::function<bool()>& stop = {}) {
    const Instructions data = own_data ? *own_data : sequences(task.objective == "dpo");
    Executor executor(sweep, task,
                      backbone_of(tiny(sweep.precision == "f32" ? at::kFloat : at::kBFloat16),
                                  ranks.size() > 1 || sweep.precision == "fp8"),
                      data, ranks, folder);
    executor.on_answers([](std::span<const std::int64_t> ids) { return std::to_string(ids.empty() ? -1 : ids[0]); });
    auto outcome = executor.run(stop);
    if (!outcome) return {};
    Result r{*outcome,
             {},
             text_of(folder + "/losses.jsonl"),
             text_of(folder + "/decisions.jsonl"),
             executor.replayed(),
             {{}},
             executor.pipelined()};
    for (const auto& j : executor.roster().jobs())
      if (j.rank == ranks.rank() && executor.weights(j.load.job).defined())
        r.best[0].push_back({j.load.job.substr(j.load.job.find('-') + 1), executor.weights(j.load.job)});
    return r;
  }
  std::string folder() { return dir / std::to_string(folders++); }
  Result alone(const std::string& where) { return *run(*make_self(), where); }
  Result alone() { return alone(folder()); }
  Result on(int ranks) {
    Result all;
    std::mutex mutex;
    const std::string where = folder();
    run_loopback(ranks, [&](Communicator& plain) {
      Counts counts;
      Counting world(plain, counts);
      const Result r = *run(world, where);
      const std::lock_guard lock(mutex);
      for (const auto& b : r.best[0]) all.best.resize(1), all.best[0].push_back(b);
      if (world.rank() == 0)
        all.counts = counts, all.outcome = r.outcome, all.losses = r.losses, all.decisions = r.decisions,
        all.pipelined = r.pipelined;
    });
    return all;
  }
};

// Losses by "job step kind".
inline std::map<std::string, double> by_line(const std::string& losses) {
  std::map<std::string, double> all;
  std::istringstream in(losses);
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const auto o = nlohmann::json::parse(line);
    for (const char* key : {"train_loss", "val_loss"})
      if (o.contains(key)) {
        std::string job = o["job"];
        all[job.substr(job.find('-') + 1) + " " + std::to_string(o["step"].get<int>()) + key] =
            o[key].is_null() ? std::nan("") : o[key].get<double>();
      }
  }
  return all;
}

inline void expect_close(const std::string& a, const std::string& b, double tolerance) {
  const auto x = by_line(a), y = by_line(b);
  ASSERT_EQ(x.size(), y.size());
  for (const auto& [key, value] : x) {
    ASSERT_TRUE(y.contains(key)) << key;
    if (std::isfinite(value)) {
      EXPECT_NEAR(value, y.at(key), tolerance * (1 + std::abs(value))) << key;
    }
  }
}

// Who was told what, when; not in which order jobs came by.
inline std::set<std::string> exits(const std::string& decisions) {
  std::set<std::string> all;
  std::istringstream in(decisions);
  for (std::string line; std::getline(in, line);) {
    const auto o = nlohmann::json::parse(line);
    all.insert(o["job"].get<std::string>() + " " + o["step"].dump() + " " + o["decision"].get<std::string>() +
               o["rank"].dump());
  }
  return all;
}

}  // namespace trireme::sweep

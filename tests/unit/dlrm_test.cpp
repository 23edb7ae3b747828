// The recipe `dlrm` on loopback ranks: gradients, equal results on any number of ranks, resume, sparse updates, the
// exchange, and the loss curve of the same model in plain PyTorch (tests/reference/dlrm_losses.py).
#ifndef __SANITIZE_ADDRESS__  // whose library has no benchmarks
#include "bench/codec_case.h"
#endif
#include "comm/device.h"
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "data/rng.h"
#include "framework/experiment.h"
#include "framework/io/checkpoint.h"
#include "framework/nn/embedding.h"
#include "framework/pinned.h"
#include "framework/session.h"
#include "recipes/dlrm/bounds.h"
#include "recipes/dlrm/codec_speed.h"
#include "recipes/dlrm/coder.h"
#include "recipes/dlrm/combine.h"
#include "recipes/dlrm/exchange.h"
#include "recipes/dlrm/exchange_switch.h"
#include "recipes/dlrm/plan.h"
#include "recipes/dlrm/tables.h"
#include "recipes/dlrm/whole_job.h"
#include "tests/fake_graph.h"
#include "tests/forwarding.h"
#include "tests/max_difference.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme::test {
namespace {

using namespace dlrm;

std::string yaml() {
  return "recipe: dlrm\nbatch_size: 48\nsteps: 6\ndevice: cpu\nthreads: 1\nprefetch: false\n"
         "optimizer: {name: sgd, lr: 0.5, momentum: 0.0, weight_decay: 0.0, schedule: const}\n"
         "data: {shape: kaggle, scale: 10000, samples: 480, test_samples: 103}\n"
         "model: {dim: 8, bottom: [16], top: [16]}\neval_batch: 40\n";
}

struct Trained {
  std::map<std::string, at::Tensor> weights;  // of all ranks
  std::vector<double> losses;
  std::map<std::string, double> metrics, logged;
};

// What depends neither on the clock nor on the number of ranks.
std::map<std::string, double> evaluated(Session& session) {
  auto metrics = session.evaluate();
  std::erase_if(metrics, [](const auto& m) { return m.first.ends_with("_ms") || m.first.ends_with("_ratio"); });
  return metrics;
}

using Change = std::function<void(Session&)>;

Trained train(int ranks, const std::vector<std::string>& keys, const Change& before = {}, std::int64_t steps = 6) {
  Trained result;
  std::mutex mutex;
  run_loopback(ranks, [&](Communicator& world) {
    Experiment e(Config::parse(yaml(), "dlrm.yaml", keys));
    Session session(world, e.train, *e.recipe);
    Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), ranks, 1,
                  {.prefetch = false});
    if (before) before(session);
    std::vector<double> losses;
    for (std::int64_t s = 0; s < steps; ++s) {
      session.context().now.step = s;
      const Batch batch = loader.next();
      session.step(batch, s + 1 < steps ? &loader.peek() : nullptr);
      losses.push_back(session.loss());
    }
    const auto metrics = evaluated(session);
    const auto logged = session.take_logged();
    const std::lock_guard lock(mutex);
    for (const auto& p : session.parameters()) result.weights[p.name] = p.value.detach().clone();
    if (world.rank() == 0) result.losses = losses, result.metrics = metrics, result.logged = logged;
  });
  return result;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

double apart(const Trained& a, const Trained& b) {
  double worst = a.weights.size() == b.weights.size() ? 0 : std::nan("");
  for (const auto& [name, w] : a.weights)
    worst = nan_max(worst, ((w - b.weights.at(name)).abs().max() / w.abs().max()).item<double>());
  for (std::size_t i = 0; i < a.losses.size(); ++i)
    worst = nan_max(worst, std::abs(a.losses[i] - b.losses.at(i)) / std::abs(a.losses[i]));
  for (const auto& [name, v] : a.metrics) worst = nan_max(worst, std::abs(v - b.metrics.at(name)) / std::abs(v));
  return worst;
}

TEST(Dlrm, EqualOnAnyNumberOfRanks) {
  for (const std::string rule : {"sgd", "adagrad", "rowwise_adagrad"}) {
    const std::vector<std::string> keys{"precision=f64", "embedding.optimizer=" + rule};
    const Trained one = train(1, keys);
    EXPECT_LT(one.losses.back(), one.losses.front());
    for (const int ranks : {2, 4}) EXPECT_LT(apart(one, train(ranks, keys)), 1e-12) << rule << " " << ranks;
  }
  const Trained one = train(1, {});
  EXPECT_LT(apart(one, train(2, {})), 1e-5);
  EXPECT_LT(apart(one, train(4, {})), 1e-5);
  EXPECT_LT(apart(one, train(8, {})), 1e-5);
  EXPECT_LT(apart(train(1, {"precision=f64"}), train(2, {"precision=f64", "accumulate=3"})), 1e-12);
}

// Bags of up to 100 ids, and ids drawn twice in one.
TEST(Dlrm, BagsAreEqualOnAnyNumberOfRanks) {
  const std::vector<std::string> keys{"precision=f64",      "data.shape=mlperf_v2",
                                      "data.scale=1000000", "batch_size=24",
                                      "model.dim=4",        "embedding.optimizer=rowwise_adagrad",
                                      "embedding.lr=0.01",  "optimizer.lr=0.05"};
  EXPECT_LT(apart(train(1, keys, {}, 3), train(3, keys, {}, 3)), 1e-12);
}

// 26 tables on 48 ranks.
TEST(Dlrm, RanksWithoutTables) {
  const std::vector<std::string> keys{"precision=f64"};
  EXPECT_LT(apart(train(1, keys, {}, 2), train(48, keys, {}, 2)), 1e-12);
  const std::vector<std::string> codes{"compression.forward.codec=auto", "compression.backward.codec=auto"};
  EXPECT_NEAR(train(48, codes, {}, 1).losses[0], train(1, codes, {}, 1).losses[0], 1e-5);
}

// The loss as a function of one weight, by finite differences, against the step that SGD takes.
TEST(Dlrm, GradientIsTheDerivative) {
  const std::vector<std::string> keys{"precision=f64", "optimizer.lr=1"};
  std::map<std::string, at::Tensor> start;
  std::mutex mutex;
  const Trained after = train(
      2, keys,
      [&](Session& s) {
        const std::lock_guard lock(mutex);
        for (const auto& p : s.parameters()) start[p.name] = p.value.detach().clone();
      },
      1);
  const auto loss_with = [&](const std::string& name, std::int64_t at, double change) {
    return train(
               1, keys,
               [&](Session& s) {
                 at::NoGradGuard no_grad;
                 for (const auto& p : s.parameters())
                   if (p.name == name) p.value.detach().view({-1})[at] += change;
               },
               1)
        .losses[0];
  };
  for (const std::string name : {"emb_l.5.weight", "emb_l.8.weight", "emb_l.16.weight", "bot_l.0.weight",
                                 "bot_l.2.bias", "top_l.0.weight", "top_l.2.weight"}) {
    const at::Tensor gradient = (start.at(name) - after.weights.at(name)).view({-1});
    const std::int64_t at = gradient.abs().argmax().item<std::int64_t>();
    const double h = 1e-5, slope = (loss_with(name, at, h) - loss_with(name, at, -h)) / (2 * h);
    EXPECT_NEAR(gradient[at].item<double>(), slope, 1e-7 * (1 + std::abs(slope))) << name;
    EXPECT_GT(std::abs(slope), 1e-6) << name;
  }
}

// ---- the same model in plain PyTorch ----

std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
double unit(std::uint64_t stream, std::uint64_t k) { return double(mixed((stream << 32) + k) >> 40) / (1 << 24); }

void fill(const at::Tensor& t, std::uint64_t stream, double bound) {
  for (std::int64_t k = 0; k < t.numel(); ++k)
    t.data_ptr<float>()[k] = float(bound * (2 * unit(stream, std::uint64_t(k)) - 1));
}

// The weights of the script: MLPs first, then tables.
void set_weights(Session& session) {
  const at::NoGradGuard no_grad;
  for (const auto& p : session.parameters()) {
    const at::Tensor t = p.value.detach();
    const std::string part = p.name.substr(0, 5);
    const auto number = std::uint64_t(std::stoi(p.name.substr(6)));
    if (part == "emb_l") {
      fill(t, 13 + number, 1 / std::sqrt(double(t.size(0))) + 0.1);
    } else {
      const std::uint64_t stream = (part == "bot_l" ? 1 : 7) + number;
      t.dim() == 2 ? fill(t, stream, 1 / std::sqrt(double(t.size(1)))) : fill(t, stream + 1, 0.1);
    }
  }
}

Batch batch_of(std::int64_t step, int rank, int ranks, const std::vector<std::int64_t>& rows) {
  constexpr std::int64_t dense = 13, global = 64;
  const std::int64_t b = global / ranks;
  Batch batch;
  const at::Tensor x = at::empty({b, dense}), ids = at::empty({b, 26}, at::kInt), label = at::empty({b});
  for (std::int64_t i = 0; i < b; ++i) {
    const auto n = std::uint64_t(step * global + rank * b + i);
    for (std::int64_t j = 0; j < dense; ++j)
      x.data_ptr<float>()[i * dense + j] = float(3 * unit(1000, n * dense + std::uint64_t(j)));
    for (std::uint64_t t = 0; t < 26; ++t)
      ids.data_ptr<int>()[i * 26 + std::int64_t(t)] = int(double(rows[t]) * std::pow(unit(2000 + t, n), 4));
    const double p = 0.2 + 0.2 * (ids.data_ptr<int>()[i * 26 + 5] < 2) + 0.1 * (3 * unit(1000, n * dense));
    label.data_ptr<float>()[i] = unit(3000, n) < p;
    batch.ids.push_back(std::int64_t(n));
  }
  batch.columns = {{"dense", x}, {"ids", ids}, {"label", label}};
  batch.index = step;
  return batch;
}

TEST(Dlrm, LossCurveOfPlainTorch) {
  std::ifstream file(test::reference_file("dlrm_losses.json"));
  const auto reference = nlohmann::json::parse(file);
  const auto rows = reference.at("rows").get<std::vector<std::int64_t>>();
  const auto wanted = reference.at("losses").get<std::vector<double>>();
  for (const int ranks : {1, 2}) {
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::parse(
          yaml(), "dlrm.yaml",
          {"batch_size=64", "steps=100", "optimizer.lr=0.1", "model.bottom=[32, 16]", "model.top=[32, 16]"}));
      Session session(world, e.train, *e.recipe);
      set_weights(session);
      for (std::int64_t s = 0; s < std::int64_t(wanted.size()); ++s) {
        session.context().now.step = s;
        session.step(batch_of(s, world.rank(), ranks, rows));
        ASSERT_NEAR(session.loss(), wanted[std::size_t(s)], 1e-5) << "step " << s << ", ranks " << ranks;
      }
    });
  }
}

// ---- sparse updates ----

// Tables of one id and of bags, summed and averaged; few rows, so that most stand in several pieces of a sum.
const std::vector<Table> bag_tables{{"a", 3}, {"b", 11, 3, "mean"}, {"c", 40}, {"d", 5, 2}};

struct Asked {
  at::Tensor ids, gradient;  // [2, 7 b], [2, tables, b, d]
};
Asked asked(std::int64_t b, std::int64_t d, std::uint64_t step) {
  Asked a{at::empty({2, 7 * b}, at::kInt), at::empty({2, 4, b, d}, at::kDouble)};
  Rng rng(1, "asked", step);
  int* id = a.ids.data_ptr<int>();
  for (int block = 0; block < 2; ++block)
    for (const Table& t : bag_tables)
      for (std::int64_t i = 0; i < b * t.width; ++i)
        *id++ = rng.below(4) == 0 ? -1 : int(rng.below(std::uint64_t(t.rows)));  // -1: a blank
  for (std::int64_t i = 0; i < a.gradient.numel(); ++i) a.gradient.data_ptr<double>()[i] = rng.normal();
  return a;
}

TEST(EmbeddingTables, UpdateLikeADenseReference) {
  const std::int64_t b = 250, d = 4;
  for (const auto rule :
       {kernels::SparseRule::sgd, kernels::SparseRule::adagrad, kernels::SparseRule::rowwise_adagrad}) {
    nn::EmbeddingTables t(bag_tables, {"a", "b", "c", "d"}, d, rule, 1, at::kDouble);
    std::vector<at::Tensor> w, m;
    for (std::size_t k = 0; k < 4; ++k) {
      EXPECT_LE(t.weight(k).abs().max().item<double>(), 1 / std::sqrt(double(bag_tables[k].rows)));
      w.push_back(t.weight(k).detach().clone()), m.push_back(at::zeros_like(w[k]));
    }
    for (std::uint64_t step = 0; step < 2; ++step) {
      const Asked a = asked(b, d, step);
      const at::Tensor out = at::empty({2, 4, b, d}, at::kDouble);
      t.lookup(a.ids, out);
      std::int64_t before = 0;
      for (std::size_t k = 0; k < 4; ++k) {
        const Table& table = bag_tables[k];
        const at::Tensor ids = a.ids.narrow(1, before * b, table.width * b).reshape({2 * b, table.width}).to(at::kLong);
        before += table.width;
        at::Tensor share = (ids >= 0).to(at::kDouble);
        if (table.pooling == "mean") share = share / share.sum(1, true).clamp_min(1);
        const at::Tensor one = at::zeros({2 * b, table.rows}, at::kDouble).scatter_add_(1, ids.clamp_min(0), share);
        EXPECT_LT(max_difference(out.select(1, std::int64_t(k)).reshape({2 * b, d}), one.mm(w[k])), 1e-14);
        const at::Tensor dense = one.t().mm(a.gradient.select(1, std::int64_t(k)).reshape({2 * b, d}));
        if (rule == kernels::SparseRule::sgd) {
          w[k] = w[k] - 0.3 * dense;
          continue;
        }
        const at::Tensor square = dense * dense;
        m[k] = m[k] + (rule == kernels::SparseRule::adagrad ? square : square.mean(1, true).expand_as(square));
        w[k] = w[k] - 0.3 * dense / (m[k].sqrt() + 1e-10);
      }
      t.update(a.ids, a.gradient, 0.3, {});
    }
    for (std::size_t k = 0; k < 4; ++k)
      EXPECT_LT(max_difference(t.weight(k).detach(), w[k]), 1e-11) << "rule " << int(rule) << " table " << k;
    const Asked a = asked(b, d, 2);
    const at::Tensor kept = t.weight(1).detach().clone(), moved = t.weight(2).detach().clone();
    t.update(a.ids, a.gradient, 0.3, at::ones({}));
    EXPECT_TRUE(at::equal(kept, t.weight(1).detach())) << "a skipped step changes nothing";
    at::Tensor frozen = t.weight(1);
    frozen.set_requires_grad(false);
    t.update(a.ids, a.gradient, 0.3, at::zeros({}));
    EXPECT_TRUE(at::equal(kept, t.weight(1)));
    EXPECT_FALSE(at::equal(moved, t.weight(2).detach()));
  }
}

// ---- resume ----

// Steps 0 to `first` on `ranks`, saved; then to the end on `then`.
Trained resumed(int ranks, int then, std::int64_t first, const std::vector<std::string>& keys) {
  const std::string folder = ::testing::TempDir() + "dlrm_resume_" + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  Trained result;
  std::mutex mutex;
  for (const bool second : {false, true}) {
    const int size = second ? then : ranks;
    run_loopback(size, [&](Communicator& world) {
      Experiment e(Config::parse(yaml(), "dlrm.yaml", keys));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), size, 1,
                    {.prefetch = false});
      const auto state = [&](Archive& ar) {
        session.state(ar);
        Archive::Group g(ar, "loader");
        loader.state(ar);
      };
      Checkpoints checkpoints(folder, 1, world);
      if (second) session.restore(checkpoints.load(first), state);
      for (std::int64_t s = second ? first : 0; s < (second ? 6 : first); ++s) {
        session.context().now.step = s;
        const Batch batch = loader.next();
        session.step(batch, &loader.peek());
      }
      if (!second) {
        checkpoints.save(first, Snapshot::take(state, world.rank()), "{}");
        checkpoints.finish();
        return;
      }
      const double loss = session.loss();
      const auto metrics = evaluated(session);
      const std::lock_guard lock(mutex);
      for (const auto& p : session.parameters()) result.weights[p.name] = p.value.detach().clone();
      if (world.rank() == 0) result.losses = {loss}, result.metrics = metrics;
    });
  }
  std::filesystem::remove_all(folder);
  return result;
}

TEST(Dlrm, ResumesWhereItWas) {
  for (const std::string codec : {"raw", "auto"}) {
    const std::vector<std::string> keys{"embedding.optimizer=rowwise_adagrad", "compression.forward.codec=" + codec,
                                        "compression.backward.codec=" + codec};
    Trained whole = train(2, keys);
    whole.losses = {whole.losses.back()};
    EXPECT_EQ(apart(whole, resumed(2, 2, 3, keys)), 0) << codec;
  }
  const std::vector<std::string> keys{"embedding.optimizer=adagrad", "precision=f64"};
  Trained whole = train(2, keys);
  whole.losses = {whole.losses.back()};
  EXPECT_LT(apart(whole, resumed(2, 3, 3, keys)), 1e-12) << "tables move to other owners, with their state";
  EXPECT_LT(apart(whole, resumed(4, 1, 2, keys)), 1e-12);
}

// As on a CPU: see FakeGraphs.
TEST(Dlrm, RecordedStepsHaveTheBitsOfTheOthers) {
  const FakeGraphs fake;
  const Change known = [](Session& s) { FakeGraphs::context = &s.context(); };
  for (const std::string rule : {"sgd", "adagrad", "rowwise_adagrad"}) {
    std::vector<std::string> keys{"steps=9",          "embedding.optimizer=" + rule, "embedding.lr=0.05",
                                  "optimizer.lr=0.1", "optimizer.schedule=cosine",   "optimizer.warmup=2"};
    const Trained graph = train(1, keys, known, 9);
    keys.emplace_back("graph=off");
    EXPECT_EQ(apart(graph, train(1, keys, known, 9)), 0) << rule;
  }
  EXPECT_EQ(FakeGraphs::made, 3);
  train(1, {"compression.forward.codec=auto"}, known);
  train(2, {});
  EXPECT_EQ(FakeGraphs::made, 3);
}

// What a step is given goes through the same few buffers for good.
TEST(Dlrm, RecordedStepsPinTheirBuffersOnce) {
  const FakeGraphs fake;
  const Change known = [](Session& s) { FakeGraphs::context = &s.context(); };
  std::vector<std::int64_t> made;
  for (const std::int64_t steps : {6, 12, 24}) {
    const std::int64_t before = PinnedBuffers::made();
    train(1, {"steps=24", "optimizer.schedule=cosine"}, known, steps);
    made.push_back(PinnedBuffers::made() - before);
  }
  EXPECT_EQ(FakeGraphs::made, 3);
  EXPECT_GT(made[0], 0);
  EXPECT_LE(made[2], 6) << "three for batches, three for numbers of the step";
  EXPECT_EQ(made[1], made[2]);
}

// Five steps of one batch, of which the last are replayed; then f(session, the batch, the same again).
void after_replays(int ranks, const std::function<void(Session&, Batch&, Batch&)>& f) {
  const FakeGraphs fake;
  run_loopback(ranks, [&](Communicator& world) {
    Experiment e(Config::parse(yaml(), "dlrm.yaml", {"graph=on"}));
    Session session(world, e.train, *e.recipe);
    FakeGraphs::context = &session.context();
    const std::vector<std::int64_t> ids{1, 2, 3, 4};
    Batch batch = e.recipe->train_data().read(ids, 0), again = e.recipe->train_data().read(ids, 0);
    for (std::int64_t s = 0; s < 5; ++s) {
      session.context().now.step = s;
      session.step(batch, &batch);
    }
    EXPECT_TRUE(session.replays());
    f(session, batch, again);
  });
}

// Nobody looks at ids that lie on a device.
TEST(Dlrm, RecordedStepsRefuseAnIdBeyondItsTable) {
  after_replays(1, [](Session& session, Batch& batch, Batch&) {
    batch.columns.at("ids")[2][7] = 1000000000;
    EXPECT_THROW(session.step(batch), DataError);
  });
}

// Ids of a step travel during the one before, also where steps are recorded: step 2 is the first that is not as it is.
// Step 6 says that another one follows than does, steps 8 and 10 know of none, step 9 is of another shape; in `never`
// no step knows.
TEST(Dlrm, RecordedStepsSendTheIdsOfTheNext) {
  const FakeGraphs fake;
  struct Run {
    std::vector<double> losses;
    std::uint64_t sent = 0;
  };
  const auto run = [](int ranks, const std::string& graph, bool never) {
    Run result;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::parse(yaml(), "dlrm.yaml", {"graph=" + graph, "embedding.optimizer=rowwise_adagrad"}));
      Session session(world, e.train, *e.recipe);
      FakeGraphs::context = &session.context();
      const std::int64_t own = 48 / ranks;
      const auto batch_at = [&](std::int64_t index) {
        std::vector<std::int64_t> ids;
        for (std::int64_t i = 0; i < (index == 9 ? own / 2 : own); ++i)
          ids.push_back((index * 48 + world.rank() * own + i) % 480);
        Batch b = e.recipe->train_data().read(ids, 0);
        b.index = index;
        return b;
      };
      std::vector<double> losses;
      for (std::int64_t s = 0; s < 12; ++s) {
        session.context().now.step = s;
        const Batch batch = batch_at(s), next = batch_at(s == 6 ? 1 : s + 1);
        session.step(batch, never || s == 8 || s == 10 ? nullptr : &next);
        losses.push_back(session.loss());
        EXPECT_EQ(session.replays(), graph == "on" && s > 2) << s;
      }
      if (world.rank() == 0) result = {losses, session.stats("ids").calls};
    });
    return result;
  };
  for (const int ranks : {2, 3}) {
    const Run plain = run(ranks, "off", false), graph = run(ranks, "on", false), never = run(ranks, "on", true);
    EXPECT_EQ(graph.losses, plain.losses) << ranks;
    EXPECT_EQ(never.losses, plain.losses) << ranks;
    EXPECT_EQ(plain.sent, 12u + 1 + 1) << "of the wrong step, of the one behind the last";
    EXPECT_EQ(graph.sent, plain.sent + 2) << "steps 8 and 10 send what nobody asks for";
    EXPECT_EQ(never.sent, 12u);
  }
}

// Refused where they are sent, a step ahead of where they would be looked up.
TEST(Dlrm, RecordedStepsRefuseAnIdOfTheNext) {
  after_replays(2, [](Session& session, Batch& batch, Batch& next) {
    next.columns.at("ids")[2][7] = 1000000000;
    EXPECT_THROW(session.step(batch, &next), DataError);
  });
}

// ---- the exchange ----

TEST(Dlrm, WithoutLossTheCodedExchangeIsThePlainOne) {
  const std::vector<std::string> lossless{"compression.forward.codec=smallest",  "compression.forward.tight=0",
                                          "compression.forward.base=0",          "compression.forward.loose=0",
                                          "compression.backward.codec=smallest", "compression.backward.bound=0"};
  for (const int ranks : {1, 2, 3}) EXPECT_EQ(apart(train(ranks, {}), train(ranks, lossless)), 0) << ranks;
}

TEST(Dlrm, SimulatedAndRealCodesGiveTheSameLosses) {
  std::vector<std::string> keys{"compression.forward.codec=auto", "compression.backward.codec=auto"};
  const Trained real = train(3, keys);
  keys.push_back("compression.forward.simulate=true"), keys.push_back("compression.backward.simulate=true");
  EXPECT_EQ(apart(real, train(3, keys)), 0);
  EXPECT_GT(apart(real, train(3, {})), 0);
  EXPECT_GT(real.logged.at("forward_ratio"), 2);
  EXPECT_GT(real.logged.at("backward_ratio"), 2);
}

// Groups by comparing each with each; tables of bags are left as they are. What is asked of no row does not travel.
TEST(Combine, SumsOfEqualRowsOverTheRootOfHowMany) {
  const std::vector<std::int64_t> widths{1, 3, 1};
  const std::int64_t blocks = 2, b = 17, d = 3;
  const at::Tensor ids = at::randint(-1, 6, {blocks, 5 * b}, at::kInt);
  for (const std::int64_t empty : {0, 7}) ids.narrow(1, b + 3 * empty, 3).fill_(-1);
  for (const std::int64_t none : {0, 1, 16}) ids.select(1, none).fill_(-1);
  const Groups groups = Grouping(widths)(ids, b);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const at::Tensor gradient = at::randn({3, b, d});
    Combiner combiner;
    const Groups own{groups.first[block].contiguous(), groups.times[block].contiguous()};
    combiner.prepare(own, d);
    at::Tensor sent = combiner.combined(gradient);
    at::Tensor expected = at::zeros({3, b, d}, at::kDouble), times = at::zeros({3, b});
    for (std::int64_t t = 0; t < 3; ++t)
      for (std::int64_t i = 0; i < b; ++i) {
        const at::Tensor asked = ids[block].narrow(0, (t == 2 ? 4 : 0) * b, b);
        const at::Tensor own_ids = t == 1 ? ids[block].narrow(0, b + 3 * i, 3) : asked[i];
        if (own_ids.max().item<int>() < 0) {
          EXPECT_EQ(own.first[t][i].item<int>(), -1);
          continue;
        }
        std::int64_t first = i;
        for (std::int64_t j = i; t != 1 && j-- > 0;)
          if (asked[j].item<int>() == asked[i].item<int>()) first = j;
        EXPECT_EQ(own.first[t][i].item<int>(), t * b + first);
        expected[t][first] += gradient[t][i].to(at::kDouble);
        times[t][first] += 1;
      }
    EXPECT_TRUE(at::equal(own.times, times));
    const at::Tensor roots = times.sqrt().unsqueeze(-1);
    EXPECT_LT(max_difference(sent * roots, expected), 1e-5);
    EXPECT_TRUE(at::equal(sent.count_nonzero(), (times > 0).sum() * d));
    restore(sent, own);
    EXPECT_LT(max_difference(sent, expected), 1e-5);
  }
}

// What `analyze` and evaluation say of other numbers of ranks: as ranks lay their ids, bags apart.
TEST(Combine, ForARunIsWhatItsRanksWouldSend) {
  const std::vector<std::int64_t> widths{1, 3, 1};
  const std::int64_t ranks = 2, b = 9, d = 4;
  const at::Tensor ids = at::randint(-1, 3, {ranks * b, 5}, at::kInt), gradients = at::randn({3, ranks * b, d});
  ids[4].narrow(0, 1, 3).fill_(-1);
  const at::Tensor asks = ids.narrow(1, 1, 3).amax(1).ge(0).to(at::kFloat).unsqueeze(1);
  const at::Tensor all = combined_for(gradients, ids, widths, int(ranks));
  for (std::int64_t r = 0; r < ranks; ++r) {
    const at::Tensor own = ids.narrow(0, r * b, b);
    std::vector<at::Tensor> sent;
    for (const auto& [column, width] : std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 1}, {1, 3}, {4, 1}})
      sent.push_back(own.narrow(1, column, width).flatten());
    Combiner combiner;
    combiner.prepare(Grouping(widths)(at::cat(sent).view({1, -1}), b), d);
    EXPECT_TRUE(at::equal(all.narrow(1, r * b, b), combiner.combined(gradients.narrow(1, r * b, b)))) << r;
    EXPECT_TRUE(at::equal(all[1].narrow(0, r * b, b), (gradients[1] * asks).narrow(0, r * b, b)))
        << "bags are their own";
  }
}

// What `analyze` looks at is what owners send: sums or means of bags, zeros for an empty one.
TEST(Analyze, LooksUpWhatTravels) {
  const std::int64_t n = 40, d = 4;
  for (const std::string pooling : {"sum", "mean"}) {
    const Table table{"t", 7, 3, pooling};
    const nn::EmbeddingTables held({table}, {"t"}, d, kernels::SparseRule::sgd, 1, at::kFloat);
    const at::Tensor ids = at::randint(-1, 7, {n, 3}, at::kInt), sent = at::empty({1, 1, n, d});
    ids[5].fill_(-1);
    held.lookup(ids.view({1, -1}), sent);
    const at::Tensor seen = pooled_rows(table, held.weight(0), ids);
    EXPECT_TRUE(at::equal(seen, sent.view({n, d}))) << pooling;
    EXPECT_EQ(seen[5].abs().sum().item<float>(), 0) << "an empty bag";
    ids[3][1] = 7;
    EXPECT_THROW(pooled_rows(table, held.weight(0), ids), DataError);
  }
}

TEST(Analyze, MeasuresACodec) {
  const std::vector<at::Tensor> batches{at::randn({64, 8}) * (at::rand({64, 1}) > 0.7), at::zeros({64, 8})};
  const CodecSpeed sparse = measure_codec("dedup_sparse", batches, 0.02, 2),
                   twice = measure_codec("dedup_sparse", batches, 0.02, 4);
  EXPECT_GT(sparse.ratio, 4);
  EXPECT_EQ(sparse.ratio, twice.ratio);
  EXPECT_GT(sparse.encode, 0);
  EXPECT_GT(sparse.decode, 0);
  EXPECT_LT(measure_codec("raw", batches, 0.02, 2).ratio, 1) << "headers are counted";
  EXPECT_THROW(measure_codec("zip", batches, 0.02, 2), UsageError);
}

TEST(Dlrm, CombinedGradientsTrainTheSameAndAreFewer) {
  const std::vector<std::string> exact{"compression.backward.codec=smallest", "compression.backward.bound=0",
                                       "compression.backward.combine=true"};
  for (const int ranks : {1, 2, 3}) EXPECT_LT(apart(train(ranks, {}), train(ranks, exact)), 1e-5) << ranks;
  std::vector<std::string> bags{"data.shape=mlperf_v2", "data.scale=1000000", "model.dim=4", "optimizer.lr=0.05"};
  const Trained plain = train(2, bags, {}, 3);
  bags.insert(bags.end(), exact.begin(), exact.end());
  EXPECT_LT(apart(plain, train(2, bags, {}, 3)), 1e-5);
  std::vector<std::string> coded{"compression.backward.codec=auto"};
  const double apiece = train(2, coded).logged.at("backward_ratio");
  coded.push_back("compression.backward.combine=true");
  EXPECT_GT(train(2, coded).logged.at("backward_ratio"), 1.2 * apiece);
  EXPECT_THROW(train(2, {"compression.backward.combine=true"}), UsageError) << "raw rows would be as many as before";
}

// What bench dlrm_link does: the exchange changes between steps that train nothing, so its losses come back.
TEST(Dlrm, TheExchangeMayChangeBetweenSteps) {
  CompressionConfig coded;
  coded.forward.codec = coded.backward.codec = "auto";
  const auto steps = [&](int ranks, const std::vector<std::pair<CompressionConfig, Local>>& arms) {
    std::vector<std::vector<double>> losses(arms.size());
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::parse(yaml(), "dlrm.yaml", {"optimizer.lr=0"}));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), 48, world.rank(), ranks, 1, {.prefetch = false});
      const Batch batch = loader.next();
      auto& exchange = dynamic_cast<ExchangeSwitch&>(*e.recipe);
      for (std::size_t k = 0; k < arms.size(); ++k) {
        exchange.use(arms[k].first, arms[k].second, session.context());
        for (int i = 0; i < 2; ++i) session.step(batch, &batch);
        const double loss = session.loss();
        const ExchangeRatios ratios = exchange.take_ratios(session.context());
        if (world.rank() != 0) continue;
        losses[k] = {loss, ratios.forward, ratios.backward};
      }
    });
    return losses;
  };
  const std::vector<std::pair<CompressionConfig, Local>> arms{
      {{}, {}}, {coded, {}}, {{}, {true, true}}, {coded, {true, true}}, {{}, {true, false}}, {coded, {}}, {{}, {}}};
  const auto all = steps(3, arms);
  EXPECT_EQ(all[0], all[6]);  // raw
  EXPECT_EQ(all[1], all[5]);  // coded
  EXPECT_NE(all[0][0], all[1][0]);
  EXPECT_EQ(all[0][1], 1);
  EXPECT_GT(all[1][1], 2);
  EXPECT_GT(all[1][2], 2);
  for (const int local : {2, 3, 4}) EXPECT_TRUE(std::isfinite(all[std::size_t(local)][0])) << local;
  EXPECT_THROW(steps(27, {{coded, {true, true}}}), UsageError);  // a rank without a table
}

// Evaluation times a step raw and coded, and changes nothing: neither what follows nor what is counted.
TEST(Dlrm, AStepIsTimedWithCodesAndWithout) {
  const std::vector<std::string> keys{"compression.forward.codec=auto", "compression.backward.codec=auto",
                                      "compression.backward.combine=true", "embedding.optimizer=adagrad"};
  std::map<std::string, double> metrics;
  std::mutex mutex;
  const Trained timed = train(2, keys, [&](Session& session) {
    const auto m = session.evaluate();
    const std::lock_guard lock(mutex);
    metrics = m;
  });
  for (const std::string way : {"raw", "coded"}) {
    EXPECT_GT(metrics.at("exchange_" + way + "_ms"), 0);
    EXPECT_GT(metrics.at("step_" + way + "_ms"), 0);
  }
  const Trained plain = train(2, keys);
  EXPECT_EQ(timed.losses, plain.losses);
  EXPECT_EQ(timed.logged.at("backward_ratio"), plain.logged.at("backward_ratio"));
  EXPECT_EQ(apart(timed, plain), 0);
}

// Codes of scope `table` do not depend on the number of ranks: the first step agrees.
TEST(Dlrm, FirstCodedStepIsTheSameOnAnyNumberOfRanks) {
  const std::vector<std::string> keys{"compression.forward.codec=auto"};
  const double one = train(1, keys, {}, 1).losses[0];
  for (const int ranks : {2, 4}) EXPECT_NEAR(train(ranks, keys, {}, 1).losses[0], one, 1e-5 * one);
}

// Rank 1 lies about the size of a code, or damages the codes themselves.
class Liar final : public Forwarding {
 public:
  Liar(Communicator& inner, bool sizes) : Forwarding(inner), sizes_(sizes) {}
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    if (rank() == 1 && (in.dtype == DType::i64) == sizes_) {
      auto* bytes = static_cast<std::uint8_t*>(const_cast<void*>(in.data));
      sizes_ ? bytes[2] = 0xff : bytes[5] ^= 0xff;  // bytes 0 to 3 of a code say how long it is
    }
    return inner_.all_to_all(in, send, out, recv);
  }

 private:
  const bool sizes_;
};

TEST(RowExchange, NamesTheRankWhoseCodeIsBad) {
  const Bounded codec({.codec = "auto", .checksum = true});
  for (const bool sizes : {true, false}) {
    std::string what;
    try {
      run_loopback(2, [&](Communicator& world) {
        Liar liar(world, sizes);
        RowExchange exchange(liar, liar, {2, 2}, {2, 2});
        const at::Tensor rows = at::randn({4, 8, 4}), out = at::empty({4, 8, 4});
        const Coding coding{&codec, false, {}, std::vector<float>(4, 0.01f), {0, 1, 2, 3}};
        exchange.start(rows, out, coding);
        exchange.finish();
      });
    } catch (const CommError& e) {
      what = e.what();
    }
    EXPECT_NE(what.find("chunk 0 from rank 1"), std::string::npos) << sizes << ": " << what;
  }
}

TEST(Bounds, DecayOfTheArtifact) {
  const std::int64_t T = 65536;
  for (const double c : {2.0, 3.0}) {
    for (int k = 0; k < 10; ++k) {
      const std::int64_t first = (k * T + 9) / 10;
      EXPECT_NEAR(decay_factor("step", c, first, T), c - k * (c - 1) / 10, 1e-12);
      if (k > 0) {
        EXPECT_NEAR(decay_factor("step", c, first - 1, T), c - (k - 1) * (c - 1) / 10, 1e-12);
      }
    }
    EXPECT_NEAR(decay_factor("step", c, T - 1, T), c - 9 * (c - 1) / 10, 1e-12);
    EXPECT_EQ(decay_factor("linear", c, 0, T), c);
    EXPECT_NEAR(decay_factor("linear", c, T / 2, T), (c + 1) / 2, 1e-12);
    EXPECT_EQ(decay_factor("log", c, 0, T), c);
    EXPECT_NEAR(decay_factor("log", c, T / 2, T),
                c * ((1 - std::log(1 + (std::exp(1.0) - 1) / 2)) * (1 - 1 / c) + 1 / c), 1e-12);
    EXPECT_EQ(decay_factor("constant", c, T - 1, T), c);
    for (const char* f : {"step", "linear", "log", "constant", "none"}) EXPECT_EQ(decay_factor(f, c, T, T), 1) << f;
    EXPECT_EQ(decay_factor("none", c, 0, T), 1);
  }
}

TEST(Planner, RanksOfAMachineShareItsMemory) {
  EXPECT_GT(share_of_memory(at::kCPU, 1), 1e8);
  EXPECT_EQ(share_of_memory(at::kCPU, 4), share_of_memory(at::kCPU, 1) / 4);
  if (!device_runtime()) {
    EXPECT_EQ(share_of_memory(at::Device(at::kCUDA, 0), 1), 0) << "not known here";
  }
  std::vector<double> memory(3);
  run_loopback(3, [&](Communicator& world) {
    Experiment e(Config::parse(yaml(), "dlrm.yaml", {}));
    Session session(world, e.train, *e.recipe);
    memory[std::size_t(world.rank())] = memory_of_ranks(session.context());
  });
  for (const double m : memory) EXPECT_EQ(m, share_of_memory(at::kCPU, 3));
}

// What kernels on a GPU cannot do is refused before a step, by the name of its key.
TEST(Coder, RefusesWhatAGpuLacks) {
  const at::Device gpu(at::kCUDA, 0);
  const auto refused = [&](const CompressionConfig& c, bool goes_on = false) {
    std::string what;
    try {
      Coder(c, {}, 26).check_device(gpu, goes_on);
    } catch (const UsageError& e) {
      what = e.what();
    }
    EXPECT_NO_THROW(Coder(c, {}, 26).check_device(at::kCPU, false));
    return what.substr(0, what.find(':'));
  };
  CompressionConfig c;
  c.nonfinite = "error", c.checksum = true;
  EXPECT_EQ(refused(c), "") << "nothing is coded";
  c.backward.codec = "auto";
  EXPECT_EQ(refused(c), "compression.nonfinite");
  EXPECT_EQ(refused(c, true), "compression.checksum") << "a run of before goes on";
  c.nonfinite = "raw";
  EXPECT_EQ(refused(c), "compression.checksum");
  c.checksum = false;
  EXPECT_EQ(refused(c), "");
  c.backward.codec = "smallest";
  EXPECT_EQ(refused(c), "compression.backward.codec");
  c.backward.codec = "raw", c.forward.codec = "smallest";
  EXPECT_EQ(refused(c), "compression.forward.codec");
}

#ifndef __SANITIZE_ADDRESS__
// `dlrm analyze --dump` writes all tables; what is measured is one table's rows.
TEST(TrainedRows, OfSeveralTablesAreRefused) {
  const auto folder = std::filesystem::temp_directory_path() / ("trireme-rows-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  for (const char* name : {"table_1_batch_0.f32", "table_1_batch_1.f32", "table_10_batch_0.f32"})
    std::ofstream(folder / name) << std::string(16, '\0');
  std::string told;
  try {
    (void)bench::rows_on_gpu(folder, 2, 2);
  } catch (const DataError& e) {
    told = e.what();
  }
  std::filesystem::remove_all(folder);
  EXPECT_NE(told.find("holds rows of table_10 and of table_1"), std::string::npos) << told;
}
#endif

TEST(Planner, BalancesAndRefuses) {
  std::vector<Table> tables;
  for (const std::int64_t rows : {10, 1000, 20, 900, 30, 800, 40}) tables.push_back({"t" + std::to_string(rows), rows});
  const Owners two = plan_tables(tables, 4, 2, 1e9, "");
  EXPECT_EQ(two.tables[0].size() + two.tables[1].size(), 7u);
  EXPECT_LE(two.tables[0].size(), 4u);
  EXPECT_LT(std::abs(two.bytes[0] - two.bytes[1]), 4 * 810);
  EXPECT_EQ(plan_tables(tables, 4, 9, 1e9, "").tables[8].size(), 0u);
  EXPECT_THROW(plan_tables(tables, 4, 9, 3999, ""), UsageError);  // t1000 fits nowhere
  EXPECT_THROW(plan_tables(tables, 4, 2, 4500, ""), UsageError);  // all do not fit together
  EXPECT_NO_THROW(plan_tables(tables, 4, 3, 4200, ""));
}

}  // namespace
}  // namespace trireme::test

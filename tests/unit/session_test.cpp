// Training steps in memory: ranks, buckets, overlap, accumulation, precision, masking. A small regression recipe.
#include "comm/loopback.h"
#include "comm/self.h"
#include "data/rng.h"
#include "framework/checkpoint.h"
#include "framework/session.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

namespace trireme {
namespace {

struct Rows : Dataset {
  std::int64_t size() const override { return 1 << 20; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    Batch b;
    b.ids.assign(ids.begin(), ids.end());
    at::Tensor x = at::empty({std::int64_t(ids.size()), 6}, at::kDouble);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      Rng rng(1, "rows", std::uint64_t(ids[i]));
      for (int k = 0; k < 6; ++k) x.data_ptr<double>()[i * 6 + k] = rng.normal();
    }
    b.columns["x"] = x;
    return b;
  }
};

// Two layers; the share of a rank is its sum over the global batch size. One parameter is never used.
struct Regression : Recipe {
  double poison = 0;  // times a sum of weights, added to the loss: NaN makes gradients NaN
  double offset = 0;  // added to the loss: no gradient
  std::vector<Param> params;
  Rows rows;
  std::int64_t batch = 1;

  void fields(Fields&) override {}
  void setup(Context& c) override {
    batch = c.config().batch_size / (c.accumulate() > 1 ? c.accumulate() : 1);
    at::Tensor w1 = at::empty({16, 6}, at::kDouble), w2 = at::empty({16}, at::kDouble);
    Rng rng(2, "weights");
    for (auto* w : {&w1, &w2})
      for (std::int64_t i = 0; i < w->numel(); ++i) w->data_ptr<double>()[i] = 0.3 * rng.normal();
    for (auto& [name, w] : std::vector<std::pair<std::string, at::Tensor>>{
             {"w1", w1}, {"b1", at::zeros({16}, at::kDouble)}, {"w2", w2}, {"unused", at::ones({5}, at::kDouble)}})
      params.push_back({name, w.to(c.param_type()), nullptr, name[0] == 'w' ? "decay" : "no_decay"});
  }
  std::vector<Param> parameters() override { return params; }
  const Dataset& train_data() override { return rows; }
  std::vector<std::int64_t> train_ids() override { return {}; }
  at::Tensor loss(const Batch& b, Context& c) override {
    const at::Tensor x = b.columns.at("x").to(c.param_type());
    const at::Tensor h = at::tanh(at::linear(x, params[0].value, params[1].value));
    const at::Tensor y = at::matmul(h, params[2].value.to(h.scalar_type())), target = at::sin(x.sum(1));
    return (y.to(x.scalar_type()) - target).square().sum() / double(batch) + poison * params[2].value.sum() + offset;
  }
};

struct Result {
  std::vector<at::Tensor> weights;
  std::vector<double> losses;
};

TrainConfig small() {
  TrainConfig c;
  c.batch_size = 24;
  c.steps = 12;
  c.precision = "f64";
  c.device = "cpu";
  c.optimizer.lr = 0.01;
  return c;
}

Result train(const TrainConfig& config, int ranks, const std::function<void(Session&, Regression&, std::int64_t)>& each = {}) {
  Result result;
  result.losses.resize(config.steps);
  std::mutex mutex;
  run_loopback(ranks, [&](Communicator& world) {
    Regression recipe;
    Session session(world, config, recipe);
    const std::int64_t b = config.batch_size / ranks;
    for (std::int64_t s = 0; s < config.steps; ++s) {
      std::vector<std::int64_t> ids(b);
      for (std::int64_t i = 0; i < b; ++i) ids[i] = s * config.batch_size + world.rank() * b + i;
      session.context().now.step = s;
      if (each) each(session, recipe, s);
      session.step(recipe.rows.read(ids, 0));
      std::lock_guard lock(mutex);
      if (world.rank() == 0) result.losses[s] = session.loss();
    }
    std::lock_guard lock(mutex);
    if (world.rank() == 0)
      for (const auto& p : session.parameters()) result.weights.push_back(p.value.detach().clone());
  });
  return result;
}

double distance(const Result& a, const Result& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.weights.size(); ++i)
    worst = std::max(worst, ((a.weights[i] - b.weights[i]).abs().max() / b.weights[i].abs().max().clamp_min(1e-30)).item<double>());
  for (std::size_t i = 0; i < a.losses.size(); ++i)
    worst = std::max(worst, std::abs(a.losses[i] - b.losses[i]) / std::abs(b.losses[i]));
  return worst;
}

TEST(Session, RanksDoNotChangeTheResult) {
  const Result one = train(small(), 1);
  EXPECT_LT(one.losses.back(), one.losses.front());
  for (const int n : {2, 3, 4}) EXPECT_LE(distance(train(small(), n), one), 1e-12) << n;
}

TEST(Session, BucketsAndOverlapDoNotChangeABit) {
  const Result reference = train(small(), 3);
  for (const bool overlap : {true, false})
    for (const double mib : {0.001, 0.0012, 25.0}) {
      TrainConfig c = small();
      c.overlap = overlap;
      c.bucket_mib = c.first_bucket_mib = mib;
      EXPECT_EQ(distance(train(c, 3), reference), 0) << overlap << " " << mib;
    }
}

TEST(Session, AccumulationEqualsTheWholeBatch) {
  const Result whole = train(small(), 2);
  TrainConfig c = small();
  c.accumulate = 3;
  EXPECT_LE(distance(train(c, 2), whole), 1e-12);
}

TEST(Session, ClippingBoundsTheStep) {
  TrainConfig c = small();
  c.optimizer.name = "sgd";
  c.optimizer.momentum = c.optimizer.weight_decay = 0;
  c.optimizer.lr = 1;
  c.optimizer.clip_norm = 1e-3;
  c.optimizer.schedule = "const";
  std::vector<at::Tensor> before;
  train(c, 2, [&](Session& s, Regression&, std::int64_t) {
    if (s.context().rank() != 0) return;
    double moved = 0;
    for (std::size_t i = 0; i < before.size(); ++i)
      moved += (s.parameters()[i].value.detach() - before[i]).square().sum().item<double>();
    if (!before.empty()) {
      EXPECT_NEAR(std::sqrt(moved), 1e-3, 1e-8);
    }
    before.clear();
    for (const auto& p : s.parameters()) before.push_back(p.value.detach().clone());
  });
}

TEST(Session, NonFiniteGradientsChangeNothing) {
  std::vector<at::Tensor> before;
  bool skipped = false;
  TrainConfig c = small();
  train(c, 2, [&](Session& s, Regression& r, std::int64_t step) {
    r.poison = step == 5 ? std::nan("") : 0;
    if (s.context().rank() != 0) return;
    if (step == 5)
      for (const auto& p : s.parameters()) before.push_back(p.value.detach().clone());
    if (step == 6) {
      skipped = s.skipped();
      for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(at::equal(before[i], s.parameters()[i].value.detach()));
    }
  });
  EXPECT_TRUE(skipped);
}

// A loss that is not finite on one rank, whatever the gradients say: no rank moves.
TEST(Session, NonFiniteLossOfOneRankStopsAll) {
  std::vector<at::Tensor> before;
  train(small(), 2, [&](Session& s, Regression& r, std::int64_t step) {
    r.offset = step == 5 && s.context().rank() == 1 ? INFINITY : 0;
    if (step == 6) {
      EXPECT_TRUE(s.skipped());
    }
    if (s.context().rank() != 0) return;
    if (step == 5)
      for (const auto& p : s.parameters()) before.push_back(p.value.detach().clone());
    if (step == 6)
      for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(at::equal(before[i], s.parameters()[i].value.detach()));
  });
}

TEST(Session, LowPrecisionFollowsF32) {
  TrainConfig c = small();
  c.precision = "f32";
  const Result full = train(c, 2);
  for (const char* precision : {"bf16", "fp16"}) {
    c.precision = precision;
    const Result low = train(c, 2);
    EXPECT_LE(std::abs(low.losses.back() - full.losses.back()), 0.05 * full.losses.front()) << precision;
    EXPECT_EQ(low.weights[0].scalar_type(), at::kFloat) << "masters stay f32";
  }
}

TEST(Session, LossScaleBacksOffAndRecovers) {
  TrainConfig c = small();
  c.precision = "fp16";
  std::vector<bool> skips;
  train(c, 1, [&](Session& s, Regression& r, std::int64_t step) {
    r.poison = step == 3 ? 1e38 : 0;
    if (step > 0) skips.push_back(s.skipped());
  });
  EXPECT_TRUE(skips[3]);
  EXPECT_FALSE(skips.back());
}

// Interrupted after any step and restored into a fresh session: the same bits.
TEST(Session, StateRestoresEveryBit) {
  for (const char* precision : {"f64", "fp16"}) {
    TrainConfig c = small();
    c.precision = precision;
    c.ema = 0.9;
    c.bucket_mib = c.first_bucket_mib = 0.001;
    const Result unbroken = train(c, 2);
    Snapshot saved[2];
    for (const std::int64_t cut : {1, 2, 7}) {
      train(c, 2, [&](Session& s, Regression&, std::int64_t step) {
        if (step == cut) saved[s.context().rank()] = Snapshot::take([&](Archive& ar) { s.state(ar); }, 0);
      });
      TrainConfig rest = c;
      const Result resumed = train(rest, 2, [&](Session& s, Regression&, std::int64_t step) {
        if (step == cut) saved[s.context().rank()].restore([&](Archive& ar) { s.state(ar); });
      });
      EXPECT_EQ(distance(resumed, unbroken), 0) << precision << " cut at " << cut;
    }
  }
}

TEST(Session, FrozenParametersStay) {
  TrainConfig c = small();
  c.freeze = {"w1"};
  const Result r = train(c, 2), free = train(small(), 2);
  Regression fresh;
  const auto self = make_self();
  TrainConfig plain = small();
  Session s(*self, plain, fresh);
  EXPECT_TRUE(at::equal(r.weights[0], s.parameters()[0].value.detach()));
  EXPECT_FALSE(at::equal(free.weights[0], s.parameters()[0].value.detach()));
  TrainConfig wrong = small();
  wrong.freeze = {"nothing*"};
  Regression other;
  EXPECT_THROW(Session(*self, wrong, other), UsageError);
}

}  // namespace
}  // namespace trireme

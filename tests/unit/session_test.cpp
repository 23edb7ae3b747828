// Training steps in memory: ranks, buckets, overlap, accumulation, precision, masking. A small regression recipe.
#include "comm/local/self.h"
#include "framework/io/checkpoint.h"
#include "tests/unit/regression_recipe.h"

#include <chrono>
#include <cmath>
#include <mutex>

#include <gtest/gtest.h>

namespace trireme {
namespace {

using namespace test;

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

TEST(Session, PhasesFillTheSteps) {
  TrainConfig c = small();
  auto begin = std::chrono::steady_clock::now();
  train(c, 1, [&](Session& s, Regression&, std::int64_t step) {
    if (step == 1) {  // without setting up
      s.take_times();
      begin = std::chrono::steady_clock::now();
    }
    if (step + 1 != c.steps) return;
    const double wall = 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const StepTimes t = s.take_times(), none = s.take_times();
    for (const double phase : {t.forward, t.backward, t.optimizer}) EXPECT_GT(phase, 0);
    const double sum = t.forward + t.backward + t.exposed + t.optimizer;
    EXPECT_LE(sum, wall);
    EXPECT_GT(sum, 0.5 * wall);
    EXPECT_EQ(none.forward + none.backward + none.exposed + none.optimizer, 0) << "taken once";
  });
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
      for (std::size_t i = 0; i < before.size(); ++i)
        EXPECT_TRUE(at::equal(before[i], s.parameters()[i].value.detach()));
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
    if (step == 6) {
      for (std::size_t i = 0; i < before.size(); ++i)
        EXPECT_TRUE(at::equal(before[i], s.parameters()[i].value.detach()));
    }
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

// Buckets, lanes of hooks and shards are made by all ranks together while a state is loaded. A rank that cannot read
// its part must not leave the others waiting there.
TEST(Session, AnErrorOfOneRankWhileLoadingReachesAll) {
  for (const bool hook : {true, false}) {
    TrainConfig c = small();
    c.steps = 2;
    if (hook)
      c.hook.name = "top_k", c.precision = "f32";
    else
      c.zero = 1;
    std::vector<Snapshot> saved(2);
    train(c, 2, [&](Session& s, Regression&, std::int64_t step) {
      if (step + 1 == c.steps)
        saved[std::size_t(s.context().rank())] = Snapshot::take([&](Archive& ar) { s.state(ar); }, s.context().rank());
    });
    for (const std::string lost : {"model/w1", "reducer/order", "optimizer/count", ""}) {
      std::mutex mutex;
      std::vector<std::string> errors;
      run_loopback(2, [&](Communicator& world) {
        Regression recipe;
        Session session(world, c, recipe);
        Snapshot snapshot = saved[0];  // what is replicated
        for (const auto& [name, entry] : saved[std::size_t(world.rank())].entries) snapshot.entries[name] = entry;
        if (world.rank() == 1) snapshot.entries.erase(lost);
        std::string error;
        try {
          session.restore(snapshot, [&](Archive& ar) { session.state(ar); });
        } catch (const DataError& e) {
          error = e.what();
        }
        const std::lock_guard lock(mutex);
        errors.push_back(error);
      });
      ASSERT_EQ(errors.size(), 2u);
      EXPECT_EQ(errors[0], errors[1]);
      EXPECT_EQ(errors[0].empty(), lost.empty()) << errors[0];
      EXPECT_NE(errors[0].find(lost), std::string::npos) << errors[0];
    }
  }
}

}  // namespace
}  // namespace trireme

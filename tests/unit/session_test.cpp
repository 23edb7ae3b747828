// Training steps in memory: ranks, buckets, overlap, accumulation, precision, masking. A small regression recipe.
#include "comm/local/self.h"
#include "framework/base/agree.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/models/saved_run.h"
#include "framework/stream_place.h"
#include "tests/fake_graph.h"
#include "tests/fault/program.h"
#include "tests/unit/regression_recipe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <new>
#include <thread>

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
  std::vector<double> filled;  // parts of the steps' times: a core that is away for some ms tells nothing of a step
  auto begin = std::chrono::steady_clock::now();
  train(small(), 1, [&](Session& s, Regression&, std::int64_t step) {
    const double wall = 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const StepTimes t = s.take_times(), none = s.take_times();
    const double sum = t.forward + t.backward + t.exposed + t.optimizer;
    EXPECT_EQ(none.forward + none.backward + none.exposed + none.optimizer, 0) << "taken once";
    if (step > 1) {  // without setting up
      for (const double phase : {t.forward, t.backward, t.optimizer}) EXPECT_GT(phase, 0);
      EXPECT_LE(sum, wall);
      filled.push_back(sum / wall);
    }
    begin = std::chrono::steady_clock::now();
  });
  ASSERT_GT(filled.size(), 5u);
  std::sort(filled.begin(), filled.end());
  EXPECT_GT(filled[filled.size() / 2], 0.5);
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

// The host may read seldom: no skipped step escapes it, nor a row that began before it last read.
TEST(Session, SkippedStepsAreCountedBetweenReads) {
  for (const std::int64_t every : {1, 4, 12}) {
    std::vector<SkippedSteps::Seen> seen;
    TrainConfig c = small();
    train(c, 2, [&](Session& s, Regression& r, std::int64_t step) {
      if (step % every == 0 && s.context().rank() == 0) seen.push_back(s.take_skipped());
      r.poison = step == 1 || (step >= 5 && step <= 9) ? std::nan("") : 0;  // the 2nd step, and the 6th to 10th
      if (step + 1 < c.steps || s.context().rank() != 0) return;
      seen.push_back(s.take_skipped());
    });
    std::int64_t total = 0, longest = 0;
    std::vector<std::int64_t> firsts;
    for (const auto& s : seen) {
      total += s.total;
      longest = std::max(longest, s.in_a_row);
      if (s.first) firsts.push_back(s.first);
    }
    EXPECT_EQ(total, 6) << every;
    EXPECT_EQ(longest, 5) << every;
    const std::vector<std::int64_t> each{2, 6, 7, 8, 9, 10}, fours{2, 6, 9}, once{2};
    EXPECT_EQ(firsts, every == 1 ? each : every == 4 ? fours : once) << every;
  }
}

at::Tensor average_of(Session& s, const std::string& name) {
  const Snapshot all = Snapshot::take([&](Archive& ar) { s.state(ar); }, 0);
  const auto& entry = all.entries.at("average/" + name);
  return at::from_blob(const_cast<std::byte*>(entry.bytes.data()), entry.shape, at::kDouble).clone();
}

TEST(Session, SkippedStepsLeaveTheRunningAverage) {
  for (const std::int64_t zero : {0, 1}) {
    TrainConfig c = small();
    c.ema = 0.5;
    c.zero = zero;
    std::vector<at::Tensor> averages[2];
    train(c, 2, [&](Session& s, Regression& r, std::int64_t step) {
      r.poison = step == 5 ? std::nan("") : 0;
      averages[s.context().rank()].push_back(average_of(s, "w1"));
    });
    for (const auto& a : averages) {
      EXPECT_FALSE(at::equal(a[4], a[5])) << "zero " << zero;
      EXPECT_TRUE(at::equal(a[5], a[6])) << "zero " << zero;
      EXPECT_FALSE(at::equal(a[6], a[7])) << "zero " << zero;
    }
  }
}

// What a recipe sees of the weights in update(), once the optimizer has stepped, is what every rank goes on with.
TEST(Session, RecipesUpdateGatheredWeights) {
  struct Watching : Regression {
    std::vector<at::Tensor> seen;
    void update(const Step& s, Context& c) override {
      Regression::update(s, c);
      seen.clear();
      for (const auto& p : params) seen.push_back(p.value.detach().clone());
    }
  };
  for (const std::int64_t zero : {0, 1})
    for (const int ranks : {2, 4}) {
      TrainConfig c = small();
      c.zero = zero;
      c.bucket_mib = c.first_bucket_mib = 0.0005;
      run_loopback(ranks, [&](Communicator& world) {
        Watching recipe;
        Session session(world, c, recipe);
        for (std::int64_t s = 0; s < 4; ++s) {
          session.context().now.step = s;
          session.step(recipe.rows.read(std::vector<std::int64_t>{s, s + 1, world.rank()}, 0));
          for (std::size_t i = 0; i < recipe.params.size(); ++i)
            EXPECT_TRUE(at::equal(recipe.seen[i], recipe.params[i].value.detach()))
                << recipe.params[i].name << ", rank " << world.rank() << " of " << ranks << ", zero " << zero;
        }
      });
    }
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

TEST(Session, FreezingAllThatTheLossNeedsIsAnError) {
  TrainConfig c = small();
  c.freeze = {"w*", "b1"};  // `unused` is left, and used by nothing
  for (const std::int64_t accumulate : {1, 2}) {
    c.accumulate = accumulate;
    EXPECT_THROW(train(c, 2), UsageError);
  }
}

// A buffer and what a recipe locks are not trained anyway.
TEST(Session, WhatIsNotTrainedCannotBeFrozen) {
  struct Fixed : Regression {
    void setup(Context& c) override {
      Regression::setup(c);
      params[1].group = "frozen";
      params.push_back({"mean", at::zeros({3}, at::kDouble), nullptr, "buffer"});
    }
  };
  const auto self = make_self();
  for (const std::string pattern : {"b1", "mean", "[bm]*", "w1"}) {
    TrainConfig c = small();
    c.freeze = {pattern};
    Fixed recipe;
    if (pattern == "w1")
      EXPECT_NO_THROW(Session(*self, c, recipe));
    else
      EXPECT_THROW(Session(*self, c, recipe), UsageError) << pattern;
  }
}

// With nothing frozen it is the recipe's fault, whatever buffers there are.
TEST(Session, ALossOfNothingIsTheRecipesFault) {
  struct Deaf : Regression {
    void setup(Context& c) override {
      Regression::setup(c);
      params.push_back({"mean", at::zeros({3}, at::kDouble), nullptr, "buffer"});
    }
    at::Tensor loss(const Batch&, Context&) override { return at::zeros({}, at::kDouble); }
  } recipe;
  const auto self = make_self();
  const TrainConfig c = small();
  Session session(*self, c, recipe);
  const std::vector<std::int64_t> ids{0, 1};
  try {
    session.step(recipe.rows.read(ids, 0));
    ADD_FAILURE() << "passed";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::bug) << e.what();
  }
}

// Checkpoints of a run whose weights are all `value`.
void save_constant(Checkpoints& checkpoints, std::int64_t step, double value, bool best = false) {
  Regression recipe;
  const TrainConfig config = small();
  const auto self = make_self();
  Session session(*self, config, recipe);
  at::NoGradGuard no_grad;
  for (const auto& p : session.parameters()) p.value.detach().fill_(value);
  checkpoints.save(step, Snapshot::take([&](Archive& ar) { session.state(ar); }, 0), "{}", best);
  checkpoints.finish();
}

TEST(InitFrom, TheRunningAverageBeginsWithTheLoadedWeights) {
  test::TempFolder folder;
  const auto self = make_self();
  std::filesystem::create_directories(folder.path / "run/ckpt");
  Checkpoints source((folder.path / "run/ckpt").string(), 2, *self);
  save_constant(source, 3, 0.25);
  TrainConfig c = small();
  c.ema = 0.999;
  run_loopback(2, [&](Communicator& world) {
    Regression recipe;
    Session session(world, c, recipe);
    init_from((folder.path / "run").string(), session, world);
    for (const auto& p : session.parameters()) {
      EXPECT_TRUE(at::equal(p.value.detach(), at::full_like(p.value.detach(), 0.25))) << p.name;
      if (world.rank() == 0) {
        EXPECT_TRUE(at::equal(average_of(session, p.name), p.value.detach())) << p.name;
      }
    }
  });
}

// A deeper model's first layers must not pass for this one.
TEST(InitFrom, WhatTheModelHasNotIsRefused) {
  test::TempFolder folder;
  const auto self = make_self();
  std::filesystem::create_directories(folder.path / "run/ckpt");
  Checkpoints source((folder.path / "run/ckpt").string(), 2, *self);
  const TrainConfig c = small();
  Regression recipe;
  Session session(*self, c, recipe);
  Snapshot snapshot = Snapshot::take([&](Archive& ar) { session.state(ar); }, 0);
  snapshot.entries["model/w9"] = snapshot.entries.at("model/w1");
  source.save(1, std::move(snapshot), "{}");
  source.finish();
  try {
    init_from((folder.path / "run").string(), session, *self);
    ADD_FAILURE() << "w9 was dropped without a word";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("holds w9"), std::string::npos) << e.what();
  }
}

// The source writes, and removes, checkpoints all the time: all ranks get the weights of one.
TEST(InitFrom, AllRanksLoadOneCheckpointOfARunThatIsWriting) {
  test::TempFolder folder;
  std::filesystem::create_directories(folder.path / "run/ckpt");
  const auto self = make_self();
  Checkpoints source((folder.path / "run/ckpt").string(), 1, *self);
  save_constant(source, 1, 1);
  std::jthread writer([&](const std::stop_token& stop) {
    for (std::int64_t step = 2; !stop.stop_requested(); ++step) save_constant(source, step, double(step));
  });
  double newest = 0;
  for (int round = 0; round < 30 || newest <= 1; ++round) {  // until something was written meanwhile
    std::vector<double> loaded(4);
    run_loopback(4, [&](Communicator& world) {
      Regression recipe;
      const TrainConfig c = small();
      Session session(world, c, recipe);
      std::this_thread::sleep_for(std::chrono::milliseconds(5 * world.rank()));  // as ranks of several nodes begin
      init_from((folder.path / "run").string(), session, world);
      loaded[std::size_t(world.rank())] = session.parameters()[0].value.detach().mean().item<double>();
    });
    for (const double x : loaded) EXPECT_EQ(x, loaded[0]) << "round " << round;
    newest = loaded[0];
  }
  EXPECT_THROW(run_loopback(2,
                            [&](Communicator& world) {
                              Regression recipe;
                              const TrainConfig c = small();
                              Session session(world, c, recipe);
                              init_from((folder.path / "nothing").string(), session, world);
                            }),
               DataError);
}

// As `--step newest` and `--step best` of eval, embed and export do.
TEST(SavedRun, IsReadWhileItsCheckpointsComeAndGo) {
  test::TempFolder folder;
  const std::string run = (folder.path / "run").string();
  std::filesystem::create_directories(run + "/ckpt");
  const auto self = make_self();
  Checkpoints source(run + "/ckpt", 1, *self);
  save_constant(source, 1, 1, true);
  std::jthread writer([&](const std::stop_token& stop) {
    for (std::int64_t step = 2; !stop.stop_requested(); ++step) save_constant(source, step, double(step), true);
  });
  double last = 0;
  for (int round = 0; round < 300 || last <= 1; ++round)
    for (const char* wanted : {"newest", "best"}) {
      const double now = read_run(run, wanted, false).weights.begin()->second.mean().item<double>();
      EXPECT_GE(now, last) << wanted;
      last = now;
    }
  EXPECT_THROW(read_run(run, "1", false), DataError) << "a step that is named is that step";
}

// Every way to be out of memory has its exit code, on the rank itself and on those it is told to.
TEST(Agree, OutOfMemoryIsNoBug) {
  const std::vector<std::function<void()>> ways{
      [] { throw std::bad_alloc(); },
#ifndef __SANITIZE_ADDRESS__  // which ends the program instead
      [] {
        std::vector<char> v(std::size_t(1) << 62);
        v[0] = 1;
      },
      [] { at::empty({std::int64_t(1) << 58}, at::kDouble); },
#endif
      [] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory."); },
  };
  for (std::size_t i = 0; i < ways.size(); ++i) {
    const auto failure = attempt(ways[i]);
    ASSERT_TRUE(failure) << i;
    EXPECT_EQ(failure->code, ExitCode::memory) << i << ": " << failure->what;
    EXPECT_EQ(failure->what.find('\n'), std::string::npos) << failure->what;
    run_loopback(2, [&](Communicator& world) {
      try {
        agree(world, world.rank() == 1 ? failure : std::nullopt);
        ADD_FAILURE() << i;
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ExitCode::memory) << i;
        EXPECT_STREQ(e.what(), failure->what.c_str()) << i;
      }
    });
  }
}

TEST(Agree, OtherErrorsKeepTheirCode) {
  const auto code = [](const std::function<void()>& work) { return attempt(work)->code; };
  EXPECT_EQ(code([] { throw UsageError("a", "b"); }), ExitCode::usage);
  EXPECT_EQ(code([] { throw std::out_of_range("x"); }), ExitCode::bug);
  EXPECT_EQ(code([] { TORCH_CHECK(false, "shapes"); }), ExitCode::bug);
  EXPECT_EQ(code([] { throw 3; }), ExitCode::bug);
  EXPECT_FALSE(attempt([] {}));
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

// Every update rule trains the same on one rank, on two, and where each keeps the moments of its share alone.
TEST(Rules, RanksAndSharesDoNotMatter) {
  for (const std::string rule : {"adamw", "lamb", "lion", "nesterov", "sgd"}) {
    TrainConfig c = small();
    c.optimizer.name = rule;
    c.optimizer.weight_decay = 0.1;
    const Result one = train(c, 1);
    EXPECT_LT(one.losses.back(), one.losses.front()) << rule;
    for (const std::int64_t zero : {0, 1}) {
      if (rule == "lamb" && zero == 1) continue;  // refused: its norms are of whole weights
      c.zero = zero;
      const Result two = train(c, 2);
      for (std::size_t i = 0; i < one.weights.size(); ++i)
        EXPECT_LE((one.weights[i] - two.weights[i]).abs().max().item<double>(), 1e-12) << rule << " zero " << zero;
    }
  }
}

// Passes over the data become steps when the data is known; a step's learning rate follows the whole.
TEST(Steps, EpochsAreStepsOfTheData) {
  struct Finite : Regression {
    std::vector<std::int64_t> train_ids() override { return std::vector<std::int64_t>(100); }
  };
  const auto world = make_self();
  TrainConfig c = small();  // batches of 24: four an epoch, the last four samples are left out
  const auto steps = [&](std::int64_t given, std::int64_t epochs) {
    c.steps = given;
    c.epochs = epochs;
    Finite recipe;
    Session session(*world, c, recipe);
    return std::pair(session.context().steps, session.context().steps_per_epoch);
  };
  EXPECT_EQ(steps(7, 3), std::pair(std::int64_t(12), std::int64_t(4)));
  EXPECT_EQ(steps(7, 0).first, 7);
  const auto refused = [](const std::string& yaml) {
    TrainConfig t;
    try {
      Config::parse(yaml, "t.yaml").read([&](Fields& f) { t.fields(f); });
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(refused("recipe: x\nzero: 1\noptimizer: {name: lamb}\n").find("norms of whole weights"), std::string::npos);
  EXPECT_EQ(refused("recipe: x\nepochs: 2\noptimizer: {name: lion, schedule: const_cooldown, cooldown: 5}\n"), "");
}

// ---- steps that are recorded and replayed, as on a CPU ----

struct Replayed {
  std::vector<at::Tensor> weights;
  std::vector<double> losses, norms;
  SkippedSteps::Seen skipped;
  std::vector<std::string> said;
  bool replays = false;
};

TrainConfig recorded_config(const std::string& rule) {
  TrainConfig c = small();
  c.precision = "f32";
  c.optimizer.name = rule;
  c.optimizer.warmup = 3;
  c.optimizer.clip_norm = 0.5;
  c.ema = 0.9;
  return c;
}

// Steps [first, last) of 24 rows, but `odd_step` of 20; `poisoned` is not finite.
Replayed replay(const TrainConfig& config, std::int64_t first = 0, std::int64_t last = 12, std::int64_t odd_step = -1,
                std::int64_t poisoned = -1, Snapshot* state = nullptr) {
  Replayed r;
  const auto world = make_self();
  Regression recipe;
  recipe.recorded = "";
  Session session(*world, config, recipe);
  FakeGraphs::context = &session.context();
  session.context().on_message = [&](std::string_view line) { r.said.emplace_back(line); };
  const auto visit = [&](Archive& ar) { session.state(ar); };
  if (first > 0) session.restore(*state, visit);
  for (std::int64_t s = first; s < last; ++s) {
    std::vector<std::int64_t> ids(s == odd_step ? 20 : 24);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = s * 24 + std::int64_t(i);
    session.context().now.step = s;
    Batch batch = recipe.rows.read(ids, 0);
    if (s == poisoned) batch.columns.at("x").fill_(INFINITY);
    session.step(batch);
    r.losses.push_back(session.loss()), r.norms.push_back(session.gradient_norm());
  }
  r.skipped = session.take_skipped();
  r.replays = session.replays();
  for (const auto& p : session.parameters()) r.weights.push_back(p.value.detach().clone());
  if (state) *state = Snapshot::take(visit, 0);
  return r;
}

void expect_equal(const Replayed& a, const Replayed& b, const std::string& what) {
  EXPECT_EQ(a.losses, b.losses) << what;
  EXPECT_EQ(a.norms, b.norms) << what;
  for (std::size_t i = 0; i < a.weights.size(); ++i) EXPECT_TRUE(at::equal(a.weights[i], b.weights[i])) << what << i;
}

TrainConfig without_graphs(TrainConfig c) {
  c.graph = "off";
  return c;
}

TEST(RecordedSteps, HaveTheBitsOfTheOthers) {
  const FakeGraphs fake;
  for (const std::string rule : {"adamw", "sgd", "nesterov", "lamb", "lion"}) {
    const TrainConfig c = recorded_config(rule);
    const Replayed graph = replay(c), plain = replay(without_graphs(c));
    EXPECT_TRUE(graph.replays && !plain.replays);
    EXPECT_EQ(graph.said, std::vector<std::string>{"steps are replayed as a CUDA graph of 3 kernels and copies"});
    expect_equal(graph, plain, rule);
    EXPECT_LT(graph.losses.back(), graph.losses.front());
  }
  EXPECT_EQ(FakeGraphs::made, 5);
}

TEST(RecordedSteps, ResumeInTheMiddle) {
  const FakeGraphs fake;
  const TrainConfig c = recorded_config("adamw");
  Replayed whole = replay(c);
  for (const std::int64_t cut : {3, 7}) {
    Snapshot state;
    replay(c, 0, cut, -1, -1, &state);
    Replayed rest = replay(c, cut, 12, -1, -1, &state);
    whole.losses.resize(12), whole.norms.resize(12);
    expect_equal({rest.weights, rest.losses, rest.norms, {}, {}, false},
                 {whole.weights,
                  {whole.losses.begin() + cut, whole.losses.end()},
                  {whole.norms.begin() + cut, whole.norms.end()},
                  {},
                  {},
                  false},
                 "from step " + std::to_string(cut));
  }
}

// One batch of other rows between recorded steps, and before there are any.
TEST(RecordedSteps, OtherShapesRunAsTheyAre) {
  const FakeGraphs fake;
  const TrainConfig c = recorded_config("adamw");
  for (const std::int64_t odd : {1, 3, 7, 11}) {
    const Replayed graph = replay(c, 0, 12, odd), plain = replay(without_graphs(c), 0, 12, odd);
    EXPECT_TRUE(graph.replays);
    expect_equal(graph, plain, "odd step " + std::to_string(odd) + " ");
    EXPECT_EQ(graph.said.size(), odd > 3 ? 2u : 1u) << "said once, and only where something was recorded";
  }
}

TEST(RecordedSteps, CountWhatTheySkip) {
  const FakeGraphs fake;
  const TrainConfig c = recorded_config("adamw");
  const Replayed graph = replay(c, 0, 12, -1, 8), plain = replay(without_graphs(c), 0, 12, -1, 8);
  EXPECT_EQ(graph.skipped.total, 1);
  EXPECT_EQ(plain.skipped.first, 9);
  for (std::size_t i = 0; i < graph.weights.size(); ++i) EXPECT_TRUE(at::equal(graph.weights[i], plain.weights[i]));
}

// A recipe that settles how it works after its first steps is recorded from then on.
TEST(RecordedSteps, BeginOnceTheRecipeAllows) {
  const FakeGraphs fake;
  const TrainConfig c = recorded_config("adamw");
  const auto world = make_self();
  Regression recipe;
  recipe.recorded = "it has not chosen";
  Session session(*world, c, recipe);
  FakeGraphs::context = &session.context();
  std::vector<std::string> said;
  session.context().on_message = [&](std::string_view line) { said.emplace_back(line); };
  for (std::int64_t s = 0; s < 12; ++s) {
    if (s == 3) recipe.recorded = "";
    std::vector<std::int64_t> ids(24);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = s * 24 + std::int64_t(i);
    session.context().now.step = s;
    session.step(recipe.rows.read(ids, 0));
    EXPECT_EQ(session.replays(), s >= 6) << s;
  }
  EXPECT_EQ(said, (std::vector<std::string>{"a step is not recorded as a CUDA graph: it has not chosen",
                                            "steps are replayed as a CUDA graph of 3 kernels and copies"}));
  const Replayed plain = replay(without_graphs(c));
  std::size_t k = 0;
  for (const auto& p : session.parameters()) EXPECT_TRUE(at::equal(p.value, plain.weights[k++])) << p.name;
}

// Collectives are recorded with the rest; whatever number of ranks, the steps are those that would run without.
TEST(RecordedSteps, OfSeveralRanks) {
  const FakeGraphs fake;
  for (const int ranks : {2, 3})
    for (const std::int64_t refuses : {-1, 99, 2, 7}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, refuses " + std::to_string(refuses));
      TrainConfig c = recorded_config("adamw");
      const Result plain = train(c, ranks);
      c.graph = "on";
      std::vector<std::int64_t> looks, taken;
      const Result graph = train(c, ranks, [&](Session& s, Regression& r, std::int64_t) {
        r.recorded = "", r.refuses = refuses;
        FakeGraphs::context = &s.context();
        if (s.context().rank() == 0) looks = r.looks, taken = r.taken;
      });
      EXPECT_EQ(distance(graph, plain), 0);
      // Two steps as they are, one from buffers of its own, and the rest; again from one that does not count on.
      using Steps = std::vector<std::int64_t>;
      EXPECT_EQ(taken, refuses == 2   ? (Steps{-1, -2, -3, -4, -5, 6, 7, 8, 9, 10, 11})
                       : refuses == 7 ? (Steps{-1, -2, 3, 4, 5, 6, 7, -8, -9, -10, 11})
                                      : (Steps{-1, -2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
      EXPECT_EQ(looks, refuses < 0    ? Steps{}
                       : refuses == 2 ? (Steps{2, 5, 6, 7, 8, 9, 10})
                       : refuses == 7 ? (Steps{2, 3, 4, 5, 6, 7, 10})
                                      : (Steps{2, 3, 4, 5, 6, 7, 8, 9, 10}));
    }
}

// Where it cannot be recorded on one rank, none replays.
TEST(RecordedSteps, OfAllRanksOrOfNone) {
  const FakeGraphs fake;
  TrainConfig c = recorded_config("adamw");
  const Result plain = train(c, 3);
  c.graph = "on";
  std::mutex mutex;
  std::vector<std::string> said;
  const Result graph = train(c, 3, [&](Session& s, Regression& r, std::int64_t step) {
    r.recorded = "", FakeGraphs::context = &s.context();
    FakeGraphs::refuse_here = s.context().rank() == 1;
    EXPECT_FALSE(s.replays()) << step;
    s.context().on_message = [&](std::string_view line) {
      const std::lock_guard lock(mutex);
      said.emplace_back(line);
    };
  });
  EXPECT_EQ(distance(graph, plain), 0);
  EXPECT_EQ(said, std::vector<std::string>{"a step is not recorded as a CUDA graph: on another rank it cannot be"});
  for (const std::string key : {"zero", "hook"}) {
    c = recorded_config("adamw");
    c.graph = "on";
    key == "zero" ? void(c.zero = 1) : void(c.hook.name = "bf16");
    train(c, 2, [&](Session& s, Regression& r, std::int64_t step) {
      r.recorded = "", FakeGraphs::context = &s.context();
      EXPECT_FALSE(s.replays()) << step;
    });
  }
}

// What a replay sends is counted, and open until the device is there, though nobody posts it.
TEST(FlightRecorder, CountsWhatIsReplayed) {
  struct Open : Work::State {
    bool done() override { return complete; }
    bool settled() override { return complete; }
    void wait() override {}
    bool wait_host(std::chrono::milliseconds) override { return complete; }
    std::shared_ptr<State> then(std::function<Work()>) override { return nullptr; }
    bool complete = false;
  };
  CommLog log("grad", 0, 2);
  log.posted(log.begin({}), nullptr);
  const auto open = std::make_shared<Open>();
  log.replayed({3, 120, 0}, open);
  EXPECT_EQ(log.stats().calls, 4u);
  EXPECT_EQ(log.stats().bytes, 120u);
  EXPECT_EQ(log.oldest_open().sequence, 4u);
  EXPECT_STREQ(log.oldest_open().name, "replayed step");
  open->complete = true;
  EXPECT_EQ(log.oldest_open().sequence, 0u);
  EXPECT_EQ(log.recent().size(), 2u);
}

// The host waits for the step that was so many before, and for no other.
TEST(StepsAhead, TheHostIsSoManyStepsAhead) {
  static int made, waited;
  made = waited = 0;
  struct Place : Work::State {
    bool done() override { return true; }
    bool settled() override { return true; }
    void wait() override { EXPECT_EQ(step, waited++); }
    bool wait_host(std::chrono::milliseconds) override { return true; }
    std::shared_ptr<State> then(std::function<Work()>) override { return nullptr; }
    const int step = made++;
  };
  const auto place = [](at::Device) -> std::shared_ptr<Work::State> { return std::make_shared<Place>(); };
  StepsAhead ahead(at::Device(at::kCUDA, 0), 3, place);
  for (int step = 1; step <= 7; ++step) {
    ahead.step();
    EXPECT_EQ(made, step);
    EXPECT_EQ(waited, std::max(0, step - 3));
  }
  StepsAhead(at::kCPU, 1, place).step();
  EXPECT_EQ(made, 7) << "a host is never ahead of itself";
}

TEST(RecordedSteps, SayWhyThereAreNone) {
  const FakeGraphs fake;
  TrainConfig c = recorded_config("adamw");
  const std::string line = "a step is not recorded as a CUDA graph: ";
  FakeGraphs::refuse = true;
  const Replayed refused = replay(c), plain = replay(without_graphs(c));
  EXPECT_EQ(refused.said, (std::vector<std::string>{line + "operation not permitted when stream is capturing"}));
  expect_equal(refused, plain, "refused");
  FakeGraphs::refuse = false;
  c.accumulate = 2;
  EXPECT_EQ(replay(c).said, std::vector<std::string>{line + "it has several micro-batches"});
  c.accumulate = 1;
  c.precision = "f64";
  EXPECT_EQ(replay(c).said, std::vector<std::string>{line + "precision is f64"});
  train(recorded_config("adamw"), 2, [&](Session& s, Regression& r, std::int64_t step) {
    r.recorded = "";
    EXPECT_FALSE(s.replays()) << step;
  });
  EXPECT_EQ(FakeGraphs::made, 0);
}

}  // namespace
}  // namespace trireme

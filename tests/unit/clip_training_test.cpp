// FastCLIP's training steps in memory, on pictures drawn here: frozen towers, micro-batches in low precision, ZeRO.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "tests/gpu/blots.h"
#include "tests/max_difference.h"
#include "tests/needs.h"

#include <mutex>
#include <optional>

namespace trireme::test {
namespace {

// Of rank 0, by name.
using Tensors = std::map<std::string, at::Tensor>;

struct Trained {
  std::vector<double> losses;
  Tensors start, weights, gradients;  // gradients: of the last step
  std::vector<bool> skipped;
};

Tensors values_of(const Session& session) {
  Tensors values;
  for (const auto& p : session.parameters()) values[p.name] = p.value.detach().clone();
  return values;
}

class ClipTraining : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder;
    prepare_blots(folder_->path / "blots.h5");
    write_text(folder_->path / "run.yaml",
               "recipe: fastclip\nbatch_size: 16\nsteps: 200\nlog_every: 1\nthreads: 1\nprefetch: false\ndevice: cpu\n"
               "bucket_mib: 0.02\nfirst_bucket_mib: 0.01\noptimizer: {lr: 1.0e-3, weight_decay: 0.1}\n" +
                   small_clip);
  }
  void SetUp() override { TRIREME_NEEDS("PCRE2"); }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }

  using Each = std::function<void(Session&, std::int64_t step)>;  // after each step, on every rank
  static Trained train(int ranks, std::int64_t steps, std::vector<std::string> keys, const Each& each = {}) {
    keys.push_back("data.file=" + (folder_->path / "blots.h5").string());
    Trained result;
    std::mutex mutex;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::load((folder_->path / "run.yaml").string(), keys));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), world.size(),
                    std::uint64_t(e.train.seed), {.prefetch = false});
      if (world.rank() == 0) result.start = values_of(session);
      for (std::int64_t s = 0; s < steps; ++s) {
        session.context().now.step = s;
        const Batch batch = loader.next();
        session.context().now.epoch = batch.epoch;
        session.step(batch);
        if (each) each(session, s);
        if (world.rank() != 0) continue;
        result.losses.push_back(session.loss());
        result.skipped.push_back(session.skipped());
      }
      std::lock_guard lock(mutex);
      if (world.rank() != 0) return;
      result.weights = values_of(session);
      for (const auto& p : session.parameters())
        if (p.value.grad().defined()) result.gradients[p.name] = p.value.grad().detach().clone();
    });
    return result;
  }

  static inline TempFolder* folder_ = nullptr;
};

bool is_visual(const std::string& name) { return name.starts_with("visual."); }

struct Freeze {
  const char* patterns;
  std::function<bool(const std::string&)> frozen;
};

const Freeze freezes[] = {
    {"freeze=[visual.*]", is_visual},
    {"freeze=[token_embedding.weight,positional_embedding,transformer.*,ln_final.*,text_projection]",
     [](const std::string& n) { return !is_visual(n) && n != "logit_scale"; }},
    {"freeze=['*[!e]']", [](const std::string& n) { return !n.ends_with("e"); }},  // all but logit_scale
    {"freeze=['*[!j]']", [](const std::string& n) { return !n.ends_with("j"); }},  // all but visual.proj
};

void expect_frozen(const Trained& t, const Freeze& f) {
  for (const auto& [name, value] : t.weights) {
    const bool same = at::equal(value, t.start.at(name));
    EXPECT_EQ(same, f.frozen(name)) << name << (same ? " did not move" : " moved");
  }
}

TEST_F(ClipTraining, FreezesTowers) {
  for (const auto& f : freezes) {
    for (const std::string loss : {"loss.name=rgclg", "loss.name=gcl", "loss.name=mbcl"})
      for (const std::string accumulate : {"accumulate=1", "accumulate=2"})
        for (const std::string precision : {"precision=f32", "precision=bf16"}) {
          SCOPED_TRACE(std::string(f.patterns) + " " + loss + " " + accumulate + " " + precision);
          expect_frozen(train(1, 2, {f.patterns, loss, accumulate, precision}), f);
        }
    for (const std::string more : {"zero=1", "hook.name=bf16", "hook.name=powersgd", "ema=0.9", "optimizer.clip_norm=1",
                                   "overlap=false", "precision=fp16"}) {
      SCOPED_TRACE(std::string(f.patterns) + " on 2 ranks, " + more);
      expect_frozen(train(2, 3, {f.patterns, more}), f);
    }
  }
}

TEST_F(ClipTraining, AConstantTemperatureIsNoneToTrainOn) {
  for (const std::string loss : {"gcl", "rgclg", "mbcl"}) {
    const std::vector<std::string> keys{"loss.name=" + loss, "loss.temperature=const"};
    const Trained towers = train(2, 2, {keys[0], keys[1], freezes[0].patterns});
    EXPECT_TRUE(at::equal(towers.weights.at("logit_scale"), towers.start.at("logit_scale"))) << loss;
    try {
      train(2, 1, {keys[0], keys[1], freezes[2].patterns});
      ADD_FAILURE() << loss << ": trained on nothing";
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find("freeze"), std::string::npos) << e.what();
    }
  }
}

TEST_F(ClipTraining, OnePairIsRefusedBeforeAnythingIsWritten) {
  for (const std::string loss : {"rgclg", "gcl", "mbcl"}) {
    EXPECT_THROW(train(1, 1, {"loss.name=" + loss, "batch_size=1"}), UsageError) << loss;
    EXPECT_EQ(train(2, 1, {"loss.name=" + loss, "batch_size=2"}).losses.size(), 1u) << loss << ": a pair on each rank";
    EXPECT_EQ(train(1, 1, {"loss.name=" + loss, "batch_size=2", "accumulate=2"}).losses.size(), 1u)
        << loss << ": micro-batches of one pair see the whole batch";
  }
}

// Micro-batches see the loss of the whole batch, so only rounding may differ: bf16 has 8 bits, also between the blocks,
// fp16 11.
TEST_F(ClipTraining, MicroBatchesInLowPrecisionGiveTheGradients) {
  for (const auto& [precision, bound] : {std::pair("bf16", 0.01), std::pair("fp16", 0.004)})
    for (const int ranks : {1, 2}) {
      const std::vector<std::string> keys{std::string("precision=") + precision, "accumulate=1"};
      const Trained whole = train(ranks, 1, keys);
      ASSERT_FALSE(whole.skipped[0]);
      for (const int n : {2, 4}) {
        SCOPED_TRACE(std::string(precision) + " in " + std::to_string(n) + " on " + std::to_string(ranks));
        const Trained cut = train(ranks, 1, {keys[0], "accumulate=" + std::to_string(n)});
        ASSERT_FALSE(cut.skipped[0]);
        EXPECT_NEAR(cut.losses[0], whole.losses[0], bound * std::abs(whole.losses[0]));
        ASSERT_EQ(cut.gradients.size(), cut.weights.size());
        double worst = 0;
        for (const auto& [name, g] : cut.gradients) {
          const at::Tensor want = whole.gradients.at(name);
          EXPECT_GT(g.abs().max().item<double>(), 0) << name << " has no gradient";
          const double off = ((g - want).norm() / want.norm()).item<double>();
          EXPECT_LE(off, bound) << name;
          worst = nan_max(worst, off);
        }
        std::printf("%s, %d micro-batches, %d ranks: gradients differ by %.1e of their length at most\n", precision, n,
                    ranks, worst);
      }
    }
}

// tau falls through 0.03, where its learning rate changes: every rank must know at once.
const std::vector<std::string> falling_tau{"loss.name=rgclg", "loss.tau=0.0304", "loss.lr_tau=1e-2",
                                           "loss.rho=8",      "precision=f64",   "optimizer.schedule=const"};

std::vector<std::string> with(std::vector<std::string> keys, const std::vector<std::string>& more) {
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

double tau_in(Session& session) {
  const Snapshot s = Snapshot::take([&](Archive& ar) { session.state(ar); }, 0);
  double tau = 0;
  std::memcpy(&tau, s.entries.at("recipe/tau").bytes.data(), sizeof tau);
  return tau;
}

TEST_F(ClipTraining, ZeroTrainsTheSameWithALearntTemperature) {
  for (const int ranks : {2, 4}) {
    const Trained plain = train(ranks, 8, falling_tau);
    const Trained sharded = train(ranks, 8, with(falling_tau, {"zero=1"}), [&](Session& session, std::int64_t step) {
      for (const auto& p : session.parameters())
        if (p.name == "logit_scale") {
          EXPECT_EQ(tau_in(session), std::exp(-p.value.item<double>()))
              << "rank " << session.context().rank() << " of " << ranks << " after step " << step + 1;
        }
    });
    EXPECT_LT(std::exp(-plain.weights.at("logit_scale").item<double>()), 0.0299) << "tau did not fall";
    EXPECT_EQ(sharded.losses, plain.losses) << ranks;
    for (const auto& [name, value] : plain.weights)
      EXPECT_TRUE(at::equal(value, sharded.weights.at(name))) << name << " on " << ranks;
  }
}

// init_from brings a temperature of its own: a constant one is what the configuration says, a trained one keeps to its
// bounds from the first step on.
TEST_F(ClipTraining, ALoadedTemperatureKeepsToTheConfiguration) {
  const auto self = make_self();
  const auto tau_from = [&](double loaded, std::vector<std::string> keys) {
    TempFolder run;
    keys.push_back("data.file=" + (folder_->path / "blots.h5").string());
    const auto tau_of = [](const Session& session, std::optional<double> set) {
      for (const auto& p : session.parameters())
        if (p.name == "logit_scale") {
          at::NoGradGuard no_grad;
          if (set) p.value.detach().fill_(std::log(1 / *set));
          return std::exp(-p.value.item<double>());
        }
      return 0.0;
    };
    const std::string yaml = (folder_->path / "run.yaml").string();
    {
      Experiment e(Config::load(yaml, {keys.back()}));
      Session session(*self, e.train, *e.recipe);
      tau_of(session, loaded);
      Checkpoints checkpoints((run.path / "ckpt").string(), 1, *self);
      checkpoints.save(1, Snapshot::take([&](Archive& ar) { session.state(ar); }, 0), "{}");
      checkpoints.finish();
    }
    keys.push_back("init_from=" + run.path.string());
    Experiment e(Config::load(yaml, keys));
    Session session(*self, e.train, *e.recipe);
    init_from(run.path.string(), session, *self);
    return tau_of(session, std::nullopt);
  };
  EXPECT_NEAR(tau_from(0.2, {"loss.temperature=const", "loss.tau=0.05"}), 0.05, 1e-6);
  EXPECT_NEAR(tau_from(0.2, {"loss.tau=0.05"}), 0.2, 1e-6);
  EXPECT_NEAR(tau_from(0.2, {"loss.tau=0.05", "loss.tau_max=0.1"}), 0.1, 1e-6);
  EXPECT_NEAR(tau_from(0.02, {"loss.tau=0.05", "loss.tau_min=0.04"}), 0.04, 1e-6);
  EXPECT_NEAR(tau_from(0.2, {"loss.tau_max=0.1", "freeze=[logit_scale]"}), 0.2, 1e-6);
}

TEST_F(ClipTraining, HowOftenItLogsChangesNothing) {
  const Trained often = train(2, 8, with(falling_tau, {"log_every=1"})),
                seldom = train(2, 8, with(falling_tau, {"log_every=7"}));
  EXPECT_EQ(often.losses, seldom.losses);
  for (const auto& [name, value] : often.weights) EXPECT_TRUE(at::equal(value, seldom.weights.at(name))) << name;
}

}  // namespace
}  // namespace trireme::test

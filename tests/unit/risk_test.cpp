// DRRho risks against their definitions by autograd in f64, on any number of ranks, and the recipe that trains on them.
#include "framework/losses/risk.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "data/rng.h"
#include "framework/experiment.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "tests/fault/program.h"
#include "tests/max_difference.h"

#include <cmath>
#include <mutex>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::test {
namespace {

constexpr std::int64_t rows = 24;
const std::string kinds[] = {"mean", "cvar", "kl_penalised", "kl_constrained"};

at::Tensor drawn(std::int64_t n, std::uint64_t key, double scale = 1) {
  Rng rng(5, "risk", key);
  at::Tensor t = at::empty({n}, at::kDouble);
  for (std::int64_t i = 0; i < n; ++i) t.mutable_data_ptr<double>()[i] = scale * rng.normal();
  return t;
}

RiskConfig config_of(const std::string& kind, double rho = 0.3) {
  RiskConfig c;
  c.kind = kind, c.tau = 0.7, c.rho = rho, c.fraction = 0.3, c.tau_min = 0.01;
  return c;
}

double worst(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs() / (1 + b.abs())).max().to(at::kDouble).item<double>();
}

at::Tensor gradient(const at::Tensor& of, const at::Tensor& by) { return torch::autograd::grad({of}, {by})[0]; }

at::Tensor kl(const at::Tensor& x, const at::Tensor& tau, double rho) {
  const at::Tensor shift = x.detach().max();  // plain exp would overflow at small tau
  return tau * ((x - shift).div(tau).exp().mean().log() + rho) + shift;
}

// The least point of the convex objective, by bisection on autograd's derivative by tau.
double minimised(const at::Tensor& x, double rho, double tau_min) {
  const auto slope = [&](double tau) {
    const at::Tensor t = at::full({}, tau, x.options()).set_requires_grad(true);
    return gradient(kl(x, t, rho), t).item<double>();
  };
  if (slope(tau_min) >= 0) return tau_min;
  double low = std::log(tau_min), high = std::log(1e6);
  for (int k = 0; k < 100; ++k) (slope(std::exp((low + high) / 2)) < 0 ? low : high) = (low + high) / 2;
  return std::exp(low);
}

// The definition over the whole batch, on the graph.
at::Tensor defined(const RiskConfig& c, const at::Tensor& x) {
  if (c.kind == "mean") return x.mean();
  if (c.kind == "cvar") return std::get<0>(x.topk(std::llround(c.fraction * double(x.size(0))))).mean();
  const double tau = c.kind == "kl_penalised" ? c.tau : minimised(x.detach(), c.rho, c.tau_min);
  return kl(x, at::full({}, tau, x.options()), c.kind == "kl_penalised" ? 0 : c.rho);
}

struct OverRanks {
  at::Tensor value, weights, tau, gradient;  // weights [B]; gradient by theta of the shares, summed
};

// Losses l_i = theta . z_i squared of `ranks` ranks.
OverRanks over(int ranks, const RiskConfig& c, const at::Tensor& z, const at::Tensor& theta, const at::Tensor& ref) {
  std::vector<RiskResult> each(static_cast<std::size_t>(ranks));
  std::vector<at::Tensor> gradients(static_cast<std::size_t>(ranks));
  double shares = 0;
  std::mutex mutex;
  run_loopback(ranks, [&](Communicator& comm) {
    const std::int64_t b = rows / ranks, first = comm.rank() * b;
    const at::Tensor t = theta.clone().set_requires_grad(true);
    const at::Tensor losses = at::mv(z.narrow(0, first, b), t).square();
    const auto r = std::size_t(comm.rank());
    each[r] = risk(comm, c, losses.detach(), ref.defined() ? ref.narrow(0, first, b) : ref);
    const at::Tensor share = risk_share(each[r], losses, ranks);
    gradients[r] = gradient(share, t);
    std::lock_guard lock(mutex);
    shares += share.item<double>();
  });
  std::vector<at::Tensor> weights;
  for (const auto& r : each) {
    weights.push_back(r.weights);
    EXPECT_TRUE(at::equal(r.value, each[0].value)) << "another value on another rank";
  }
  EXPECT_NEAR(shares, each[0].value.item<double>(), 1e-12 * (1 + std::abs(shares)));
  return {each[0].value, at::cat(weights), each[0].tau, at::stack(gradients).sum(0)};
}

TEST(Risk, IsItsDefinitionOnAnyNumberOfRanks) {
  const at::Tensor z = drawn(rows * 4, 1).reshape({rows, 4}), theta = drawn(4, 2), ref = drawn(rows, 3, 2).abs();
  for (const auto& kind : kinds)
    for (const double rho : {0.01, 0.3, 1.5})
      for (const at::Tensor& reference : {at::Tensor(), ref}) {
        const RiskConfig c = config_of(kind, rho);
        const at::Tensor t = theta.clone().set_requires_grad(true);
        at::Tensor x = at::mv(z, t).square();
        if (reference.defined()) x = x - reference;
        const at::Tensor free = x.detach().clone().set_requires_grad(true);
        const at::Tensor value = defined(c, x);
        const at::Tensor by_theta = gradient(value, t), by_x = gradient(defined(c, free), free);
        const OverRanks one = over(1, c, z, theta, reference);
        for (const int k : {1, 2, 4}) {
          SCOPED_TRACE(kind + " rho " + std::to_string(rho) + " on " + std::to_string(k));
          const OverRanks got = over(k, c, z, theta, reference);
          EXPECT_LE(worst(got.value, value.detach()), 1e-10);
          EXPECT_LE(worst(got.weights, by_x), 1e-10);
          EXPECT_LE(worst(got.gradient, by_theta), 1e-10);
          EXPECT_NEAR(got.weights.sum().item<double>(), 1, 1e-12);
          EXPECT_TRUE(at::equal(got.value, one.value) && at::equal(got.weights, one.weights)) << "bits";
          EXPECT_EQ(got.tau.defined(), kind.starts_with("kl"));
          if (kind == "kl_constrained") {
            EXPECT_NEAR(got.tau.item<double>(), minimised(x.detach(), rho, c.tau_min), 1e-10 * got.tau.item<double>());
          }
        }
      }
}

RiskResult alone(const RiskConfig& c, const at::Tensor& losses, const at::Tensor& ref = {}) {
  RiskResult r;
  run_loopback(1, [&](Communicator& comm) { r = risk(comm, c, losses, ref); });
  return r;
}

TEST(Risk, StaysSoundAtTheEdges) {
  const RiskConfig c = config_of("kl_constrained");
  // No tau is small enough where fewer than n e^-rho rows are largest; equal losses are worth nothing at any.
  EXPECT_EQ(alone(config_of("kl_constrained", 3.1), drawn(16, 4)).tau.item<double>(), c.tau_min);
  const RiskResult flat = alone(c, at::ones({16}, at::kDouble));
  EXPECT_EQ(flat.tau.item<double>(), c.tau_min);
  EXPECT_NEAR(flat.value.item<double>(), 1 + c.rho * c.tau_min, 1e-14);
  for (const double scale : {1e-12, 1e6, 1e100}) {
    const RiskResult r = alone(c, drawn(16, 4, scale));
    EXPECT_TRUE(std::isfinite(r.value.item<double>())) << scale;
    EXPECT_NEAR(r.weights.sum().item<double>(), 1, 1e-12) << scale;
  }
  // Of equal losses the lower rows.
  RiskConfig top = config_of("cvar");
  top.fraction = 0.5;
  EXPECT_TRUE(at::equal(alone(top, at::ones({4}, at::kDouble)).weights, at::tensor({0.5, 0.5, 0.0, 0.0}, at::kDouble)));
  top.fraction = 1e-9;
  EXPECT_EQ(alone(top, drawn(8, 1)).weights.max().item<double>(), 1) << "at least one row counts";
  // f32 losses are summed in f64.
  for (const auto& kind : kinds) {
    const at::Tensor x = drawn(16, 6).to(at::kFloat);
    EXPECT_LE(worst(alone(config_of(kind), x).value, alone(config_of(kind), x.to(at::kDouble)).value), 1e-14) << kind;
    EXPECT_EQ(alone(config_of(kind), x).weights.scalar_type(), at::kFloat);
  }
}

TEST(Risk, LetsNothingBadPass) {
  for (const auto& kind : kinds)
    for (const double bad : {std::nan(""), HUGE_VAL}) {
      at::Tensor x = drawn(8, 7);
      x.mutable_data_ptr<double>()[3] = bad;
      EXPECT_FALSE(std::isfinite(alone(config_of(kind), x).value.item<double>())) << kind << " " << bad;
      x = drawn(8, 7);
      EXPECT_FALSE(
          std::isfinite(alone(config_of(kind), x, at::full({8}, std::nan(""), x.options())).value.item<double>()))
          << kind << " from the reference";
    }
}

// The mlp on these risks.

using Weights = std::map<std::string, at::Tensor>;

struct Trained {
  std::vector<double> losses;
  Weights weights;
};

class MlpRisk : public testing::Test {
 protected:
  // resume: from a checkpoint after half of the steps, in a new session.
  static Trained train(int ranks, std::vector<std::string> keys, bool resume = false) {
    const std::string yaml =
        "recipe: mlp\nsizes: [6, 8, 3]\nsamples: 200\nbatch_size: 24\nsteps: 6\nthreads: 1\ndevice: cpu\nlog_every: 1\n"
        "precision: f64\noptimizer: {lr: 1.0e-2}\nbucket_mib: 0.001\nfirst_bucket_mib: 0.001\n";
    Trained result;
    const TempFolder folder;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::parse(yaml, "mlp.yaml", keys));
      auto session = std::make_unique<Session>(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), world.size(),
                    std::uint64_t(e.train.seed), {.prefetch = false});
      std::optional<Experiment> again;
      for (std::int64_t s = 0; s < e.train.steps; ++s) {
        if (resume && s == e.train.steps / 2) {
          Checkpoints checkpoints((folder.path / "ckpt").string(), 1, world);
          checkpoints.save(s, Snapshot::take([&](Archive& ar) { session->state(ar); }, world.rank()), "{}");
          checkpoints.finish();
          const Snapshot snapshot = checkpoints.load(s);
          again.emplace(Config::parse(yaml, "mlp.yaml", keys));
          session = std::make_unique<Session>(world, again->train, *again->recipe);
          session->restore(snapshot, [&](Archive& ar) { session->state(ar); });
        }
        session->context().now.step = s;
        session->step(loader.next());
        if (world.rank() == 0) result.losses.push_back(session->loss());
      }
      if (world.rank() == 0)
        for (const auto& p : session->parameters()) result.weights[p.name] = p.value.detach().clone();
    });
    return result;
  }

  // Weights of another seed's run as a file.
  static std::string reference(const TempFolder& folder, std::vector<std::string> keys = {}) {
    keys.push_back("seed=9");
    std::vector<NamedTensor> tensors;
    for (const auto& [name, t] : train(1, keys).weights) tensors.push_back({name, t});
    const std::string path = (folder.path / (std::to_string(tensors.size()) + "reference.safetensors")).string();
    write_safetensors(path, tensors);
    return path;
  }

  static double distance(const Trained& a, const Trained& b) {
    double far = 0;
    for (std::size_t i = 0; i < a.losses.size(); ++i) far = nan_max(far, std::abs(a.losses[i] - b.losses[i]));
    for (const auto& [name, t] : a.weights) far = nan_max(far, worst(t, b.weights.at(name)));
    return far;
  }

  static std::string refused(const std::vector<std::string>& keys) {
    try {
      train(2, keys);
    } catch (const Error& e) {
      return e.what();
    }
    return {};
  }
};

TEST_F(MlpRisk, TrainsAlikeOnAnyNumberOfRanksAndMicroBatches) {
  const TempFolder folder;
  const std::string ref = "risk.reference=" + reference(folder);
  for (const auto& kind : kinds) {
    std::vector<std::string> keys{"risk.kind=" + kind};
    if (kind != "mean") keys.push_back(ref);
    const Trained one = train(1, keys);
    for (const int ranks : {2, 4}) EXPECT_LE(distance(train(ranks, keys), one), 1e-12) << kind << " on " << ranks;
    keys.push_back("accumulate=3");
    for (const int ranks : {1, 2}) EXPECT_LE(distance(train(ranks, keys), one), 1e-12) << kind << " in micro-batches";
    EXPECT_EQ(distance(train(2, keys, true), train(2, keys)), 0) << kind << ", resumed";
  }
}

TEST_F(MlpRisk, AgreesWithTheMeanWhereItShould) {
  const Trained mean = train(2, {});
  EXPECT_EQ(distance(train(2, {"risk.kind=mean"}), mean), 0);
  EXPECT_LE(distance(train(2, {"risk.kind=cvar", "risk.fraction=1"}), mean), 1e-12);
  EXPECT_LE(distance(train(2, {"risk.kind=kl_penalised", "risk.tau=1e9"}), mean), 1e-6);
  const TempFolder folder;
  EXPECT_LE(distance(train(2, {"risk.kind=cvar", "risk.fraction=1", "risk.reference=" + reference(folder)}), mean), 3)
      << "the value is less by the reference's losses";
  for (const auto& kind : {"cvar", "kl_penalised", "kl_constrained"}) {
    const std::vector<std::string> with{"risk.kind=" + std::string(kind), "risk.reference=" + reference(folder)};
    EXPECT_GT(distance(train(1, with), train(1, {with[0]})), 1e-3) << kind << ": the reference changes nothing";
  }
}

TEST_F(MlpRisk, RefusesAReferenceThatDoesNotFit) {
  const TempFolder folder;
  const std::string kind = "risk.kind=cvar", wide = reference(folder, {"sizes=[6, 9, 3]"});
  const std::string said = refused({kind, "risk.reference=" + wide});
  EXPECT_NE(said.find("layers.0.weight has shape [9, 6], the model [8, 6]"), std::string::npos) << said;
  EXPECT_NE(said.find("needs a model of the same sizes"), std::string::npos) << said;
  const std::string deep = reference(folder, {"sizes=[6, 8, 8, 3]"});
  EXPECT_NE(refused({kind, "risk.reference=" + deep}).find("holds 6 tensors, the model has 4"), std::string::npos);
  EXPECT_NE(refused({kind, "risk.reference=" + (folder.path / "none").string()}).find("correct risk.reference"),
            std::string::npos);
  EXPECT_NE(refused({"risk.reference=" + wide}).find("choose another risk.kind"), std::string::npos);
  for (const std::string key : {"risk.tau=0", "risk.rho=0", "risk.fraction=0", "risk.fraction=1.1", "risk.kind=max"})
    EXPECT_NE(refused({key}), "") << key;
}

TEST_F(MlpRisk, ARunGoesOnWithItsOwnReference) {
  const TempFolder folder;
  const std::string path = reference(folder);
  Snapshot snapshot;
  for (const bool changed : {false, true})
    run_loopback(1, [&](Communicator& world) {
      if (changed) {
        const Safetensors file(path);
        std::vector<NamedTensor> tensors;
        for (const auto& name : file.names()) tensors.push_back({name, file.tensor(name) * 2});
        write_safetensors(path, tensors);
      }
      Experiment e(Config::parse("recipe: mlp\nsizes: [6, 8, 3]\nsamples: 200\nbatch_size: 24\nsteps: 6\ndevice: cpu\n",
                                 "mlp.yaml", {"precision=f64", "risk.kind=cvar", "risk.reference=" + path}));
      Session session(world, e.train, *e.recipe);
      const auto state = [&](Archive& ar) { session.state(ar); };
      if (!changed) snapshot = Snapshot::take(state, 0);
      if (!changed) {
        session.restore(snapshot, state);
      } else {
        EXPECT_THROW(session.restore(snapshot, state), DataError);
      }
      Experiment none(Config::parse("recipe: mlp\nsizes: [6, 8, 3]\nsamples: 200\nbatch_size: 24\nsteps: 6\n",
                                    "mlp.yaml", {"device=cpu", "precision=f64", "risk.kind=cvar"}));
      Session without(world, none.train, *none.recipe);
      EXPECT_THROW(without.restore(snapshot, [&](Archive& ar) { without.state(ar); }), DataError);
    });
}

}  // namespace
}  // namespace trireme::test

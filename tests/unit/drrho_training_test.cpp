// Training steered by a frozen reference: shift, distillation and selection, on any number of ranks, cached or online,
// resumed; on pictures drawn here.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "recipes/clip/reference.h"
#include "tests/gpu/blots.h"
#include "tests/max_difference.h"
#include "tests/needs.h"
#include "trainers/commands/data.h"

#include <cmath>
#include <optional>

#include <ATen/ATen.h>

namespace trireme::test {
namespace {

using Keys = std::vector<std::string>;

struct Trained {
  std::vector<double> losses;
  std::map<std::string, at::Tensor> weights;
  std::map<std::string, std::vector<double>> tables;  // log u, of rank 0
};

Keys operator+(Keys a, const Keys& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class DrrhoTraining : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!missing_libraries({"PCRE2"}).empty()) return;
    folder_ = new TempFolder;
    prepare_blots(path("blots.h5"));
    write_text(path("run.yaml"),
               "recipe: drrho_clip\nbatch_size: 16\nsteps: 3\nlog_every: 1\nthreads: 1\nprefetch: false\ndevice: cpu\n"
               "precision: f64\nbucket_mib: 0.02\nfirst_bucket_mib: 0.01\noptimizer: {lr: 1.0e-3, weight_decay: 0.1}\n"
               "loss: {tau: 0.1}\n" +
                   small_clip);
    train(1, {"seed=7", "loss.name=mbcl"}, {}, path("reference"));
    for (const std::string type : {"f32", "f16"}) {
      DataOptions o;
      o.name = "cache-reference", o.model = path("reference"), o.data = path("blots.h5");
      o.type = type, o.out = path(type + ".h5"), o.threads = 1, o.device = "cpu";
      cache_reference(o);
    }
  }
  void SetUp() override { TRIREME_NEEDS("PCRE2"); }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }
  static std::string path(const std::string& name) { return (folder_->path / name).string(); }
  static std::string online() { return "reference.model=" + path("reference"); }

  // resume_at: a new session goes on from a checkpoint there, with `more` keys. keep: a run folder for the last
  // checkpoint.
  static Trained train(int ranks, Keys keys, std::optional<std::int64_t> resume_at = {}, const std::string& keep = {},
                       const Keys& more = {}) {
    keys = keys + Keys{"data.file=" + path("blots.h5"), "data.crop_scale=1"};
    Trained result;
    const TempFolder own;
    const std::string ckpt = (keep.empty() ? own.path.string() : keep) + "/ckpt";
    fs::create_directories(ckpt);
    run_loopback(ranks, [&](Communicator& world) {
      const auto make = [&](const Keys& all) {
        return std::make_unique<Experiment>(Config::load(path("run.yaml"), all));
      };
      auto e = make(keys);
      auto session = std::make_unique<Session>(world, e->train, *e->recipe);
      if (!e->train.init_from.empty()) init_from(e->train.init_from, *session, world);
      Checkpoints checkpoints(ckpt, 1, world);
      const auto save = [&](std::int64_t step) {
        checkpoints.save(step, Snapshot::take([&](Archive& ar) { session->state(ar); }, world.rank()), "{}");
        checkpoints.finish();
      };
      std::optional<Loader> loader;
      const auto load = [&] {
        loader.emplace(e->recipe->train_data(), e->recipe->train_ids(), e->train.batch_size, world.rank(), ranks,
                       std::uint64_t(e->train.seed), LoaderOptions{.prefetch = false});
      };
      load();
      for (std::int64_t s = 0; s < e->train.steps; ++s) {
        if (s == resume_at) {
          save(s);
          loader.reset(), session.reset();
          e = make(keys + more);
          session = std::make_unique<Session>(world, e->train, *e->recipe);
          session->restore(checkpoints.load(s), [&](Archive& ar) { session->state(ar); });
          load();
          for (std::int64_t k = 0; k < s; ++k) loader->next();
        }
        session->context().now.step = s;
        session->step(loader->next());
        if (world.rank() == 0) result.losses.push_back(session->loss());
      }
      if (!keep.empty()) save(e->train.steps);
      if (world.rank() != 0) return;
      for (const auto& p : session->parameters()) result.weights[p.name] = p.value.detach().clone();
      const Snapshot last = Snapshot::take([&](Archive& ar) { session->state(ar); }, 0);
      for (const auto& [name, entry] : last.entries)
        if (name.starts_with("recipe/log_u")) {
          const auto* p = reinterpret_cast<const double*>(entry.bytes.data());
          result.tables[name].assign(p, p + entry.bytes.size() / sizeof(double));
        }
    });
    return result;
  }

  static double distance(const Trained& a, const Trained& b) {
    double far = 0;
    for (std::size_t i = 0; i < a.losses.size(); ++i) far = nan_max(far, std::abs(a.losses[i] - b.losses[i]));
    for (const auto& [name, t] : a.weights)
      far = nan_max(far, (t - b.weights.at(name)).abs().max().to(at::kDouble).item<double>());
    return far;
  }

  static std::string refused(const Keys& keys, int ranks = 2, std::optional<std::int64_t> resume_at = {},
                             const Keys& more = {}) {
    try {
      train(ranks, keys, resume_at, {}, more);
    } catch (const Error& e) {
      return e.what();
    }
    return {};
  }

  static inline TempFolder* folder_ = nullptr;
};

struct Way {
  const char* name;
  Keys keys;
  bool own_rows = false;  // each rank selects among its own, so other ranks train on other rows
};

const std::vector<Way> ways{
    {"shift", {"reference.use=[shift]"}},
    {"shift, a trained temperature", {"reference.use=[shift]", "loss.temperature=global"}},
    {"shift of v0", {"reference.use=[shift]", "loss.name=gcl"}},
    {"shift, linear u", {"reference.use=[shift]", "loss.u_domain=linear"}},
    {"distill", {"reference.use=[distill]", "reference.distill_scale=20"}},
    {"distill beside the mini-batch loss",
     {"reference.use=[distill]", "loss.name=mbcl", "loss.temperature=global", "loss.weight=0.3"}},
    {"both",
     {"reference.use=[shift, distill]", "reference.distill_scale=20", "reference.shift_scale=30",
      "loss.temperature=global", "reference.distill_weight=0.5"}},
    {"jest", {"reference.use=[select, shift]", "reference.select_fraction=0.5"}, true},
    {"jest_topk", {"reference.use=[select]", "reference.select=jest_topk", "reference.select_fraction=0.5"}, true},
    {"rho", {"reference.use=[select, distill]", "reference.select=rho", "reference.select_fraction=0.5"}, true}};

TEST_F(DrrhoTraining, IsTheSameOnAnyNumberOfRanksAndInParts) {
  const Trained plain = train(1, {});
  for (const auto& way : ways) {
    SCOPED_TRACE(way.name);
    const Keys keys = way.keys + Keys{online()};
    const Trained one = train(1, keys), two = train(2, keys);
    EXPECT_GT(distance(one, plain), 1e-4) << "the reference changes nothing";
    EXPECT_TRUE(std::isfinite(one.losses.back()));
    if (!way.own_rows) {
      EXPECT_LE(distance(two, one), 1e-9) << "2 ranks";
      EXPECT_LE(distance(train(4, keys), one), 1e-9) << "4 ranks";
    }
    for (const int ranks : {1, 2}) {
      const Trained& whole = ranks == 1 ? one : two;
      EXPECT_LE(distance(train(ranks, keys + Keys{"accumulate=2"}), whole), 1e-9) << ranks << " ranks in parts";
      EXPECT_EQ(distance(train(ranks, keys, 1), whole), 0) << ranks << " ranks, resumed";
    }
  }
}

const std::vector<Way> losses{
    {"mbcl", {"loss.name=mbcl"}},
    {"mbcl, sent", {"loss.name=mbcl", "loss.reduction=reduce_scatter"}},
    {"siglip", {"loss.name=siglip", "loss.lr_tau=-1"}},
    {"v0", {"loss.name=gcl"}},
    {"v1, constant gamma", {"loss.name=gcl", "loss.temperature=const", "loss.gamma_schedule=constant"}},
    {"v2", {"loss.name=rgcl", "loss.temperature=individual", "loss.lr_tau=0.01"}},
    {"v2, sent", {"loss.name=rgcl", "loss.temperature=individual", "loss.reduction=reduce_scatter"}},
    {"v3", {}},
    {"v3, sent and whole tables", {"loss.reduction=reduce_scatter", "loss.u_table=replicated"}},
    {"v3, masked", {"loss.mask_same_caption=true"}},
    {"scent, log u", {"loss.estimator=scent", "loss.u_domain=log"}}};

// Past the first epoch, so that tables are read: on any number of ranks, in parts, and gone on with.
TEST_F(DrrhoTraining, EveryLossIsTheSameOnAnyNumberOfRanks) {
  const Keys common{"recipe=fastclip",    "steps=7",      "batch_size=48",
                    "data.part=[0, 0.1]", "loss.tau=0.1", "loss.gamma_min=0.4"};
  for (const auto& way : losses) {
    SCOPED_TRACE(way.name);
    const Keys keys = common + way.keys;
    const Trained one = train(1, keys), two = train(2, keys);
    EXPECT_TRUE(std::isfinite(one.losses.back()));
    EXPECT_LE(distance(two, one), 1e-9);
    EXPECT_LE(distance(train(4, keys), one), 1e-9);
    EXPECT_LE(distance(train(2, keys + Keys{"accumulate=2"}), one), 1e-9) << "in parts";
    EXPECT_EQ(distance(train(2, keys, 5), two), 0) << "resumed";
  }
}

TEST_F(DrrhoTraining, CachedFeaturesAreTheModel) {
  for (const auto& way : ways) {
    SCOPED_TRACE(way.name);
    const Keys keys = way.keys + Keys{"steps=1"};
    const Trained model = train(2, keys + Keys{online()});
    const auto relative = [&](const std::string& file) {
      const Trained t = train(2, keys + Keys{"reference.features=" + path(file)});
      return std::abs(t.losses[0] - model.losses[0]) / (1 + std::abs(model.losses[0]));
    };
    EXPECT_LE(relative("f32.h5"), 1e-6);
    if (!way.own_rows) {
      EXPECT_LE(relative("f16.h5"), 1e-2);
    }
  }
}

TEST_F(DrrhoTraining, AReferenceTellsItsSizeBeforeItIsOpened) {
  fastclip::ReferenceConfig online, cached;
  online.model = path("reference"), cached.features = path("f16.h5");
  std::int64_t weights = 0;
  for (const auto& [name, t] : train(1, {"steps=1"}).weights) weights += t.numel();
  EXPECT_EQ(fastclip::size_of(online).width, 16);
  EXPECT_EQ(fastclip::size_of(online).weights, weights);
  EXPECT_EQ(fastclip::size_of(cached).width, 16);
  EXPECT_EQ(fastclip::size_of(cached).weights, 0);
  online.model = cached.features = path("nowhere");
  EXPECT_EQ(fastclip::size_of(online).width + fastclip::size_of(cached).width, 0);
  cached.features = path("run.yaml");
  EXPECT_THROW(fastclip::size_of(cached), DataError);
}

// Where reference and model are one, every margin is 0: u = eps + (B - 1)/B, and only the penalty of tau is left.
TEST_F(DrrhoTraining, AReferenceEqualToTheModelLeavesNothing) {
  const Keys keys{"steps=1", online(), "reference.use=[shift]", "init_from=" + path("reference")};
  EXPECT_NEAR(train(2, keys).losses[0], 0.1 * (11 + std::log(1e-4 + 15.0 / 16)), 1e-9);
}

// Against the definition, pair by pair.
TEST_F(DrrhoTraining, TheVarianceThatAReferenceLeaves) {
  constexpr int n = 7;
  const auto rows = [](std::int64_t d) {
    const at::Tensor t = at::randn({2, n, d}, at::kDouble);
    return t / t.norm(2, {2}, true);
  };
  const at::Tensor own = rows(5), theirs = rows(3);
  const auto variance = [](const std::vector<double>& v) {
    double mean = 0, sum = 0;
    for (const double x : v) mean += x / double(v.size());
    for (const double x : v) sum += (x - mean) * (x - mean);
    return sum;
  };
  double left = 0, all = 0;
  for (int side = 0; side < 2; ++side)
    for (int a = 0; a < n; ++a) {
      const auto margin = [&](const at::Tensor& f, int b) {
        return at::dot(f[side][a], f[1 - side][b]).item<double>() - at::dot(f[0][a], f[1][a]).item<double>();
      };
      std::vector<double> excess, loss;
      for (int b = 0; b < n; ++b)
        if (b != a) loss.push_back(margin(own, b)), excess.push_back(loss.back() - margin(theirs, b));
      left += variance(excess), all += variance(loss);
    }
  EXPECT_NEAR(fastclip::variance_ratio(own, theirs), left / all, 1e-12);
  EXPECT_NEAR(fastclip::variance_ratio(own, own), 0, 1e-15);
}

// A run's evaluation tells it: nothing is left where reference and model are one, cached features are the model's.
TEST_F(DrrhoTraining, EvaluationTellsTheVariance) {
  const auto evaluated = [](const Keys& keys, int ranks) {
    std::map<std::string, double> metrics;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::load(path("run.yaml"), Keys{"data.file=" + path("blots.h5"), "data.crop_scale=1"} + keys));
      Session session(world, e.train, *e.recipe);
      if (!e.train.init_from.empty()) init_from(e.train.init_from, session, world);
      const auto mine = session.evaluate();
      if (world.rank() == 0) metrics = mine;
    });
    return metrics;
  };
  const std::string key = "variance_ratio";
  EXPECT_FALSE(evaluated({}, 1).contains(key));
  EXPECT_NEAR(evaluated({online(), "init_from=" + path("reference")}, 1).at(key), 0, 1e-12);
  const double one = evaluated({online()}, 1).at(key);
  EXPECT_GT(one, 1e-3);
  EXPECT_EQ(evaluated({online()}, 2).at(key), one);
  EXPECT_EQ(evaluated({online(), "data.crop_scale=0.2", "data.keyword_dropout=0.9"}, 1).at(key), one)
      << "measured on augmented pairs";
  EXPECT_NEAR(evaluated({"reference.features=" + path("f32.h5")}, 2).at(key), one, 1e-5 * one);
}

// What is selected is what the table of normalisers has visited.
TEST_F(DrrhoTraining, ASelectionIsAFractionOfTheBatch) {
  const auto visited = [](const Trained& t) {
    const auto& u = t.tables.at("recipe/log_u_image");
    return std::count_if(u.begin(), u.end(), [](double v) { return std::isfinite(v); });
  };
  const Keys keys{"steps=1", online(), "reference.use=[select]", "loss.u_table=replicated"};
  for (const int ranks : {1, 2})
    for (const std::string how : {"jest", "jest_topk", "rho"}) {
      const Keys all = keys + Keys{"reference.select=" + how};
      EXPECT_EQ(visited(train(ranks, all + Keys{"reference.select_fraction=0.5"})), 8) << how << " " << ranks;
      EXPECT_EQ(visited(train(ranks, all + Keys{"reference.select_fraction=1"})), 16) << how << " " << ranks;
    }
  // All of a batch is the batch.
  EXPECT_LE(distance(train(2, keys + Keys{"reference.select_fraction=1"}), train(2, {"steps=1"})), 1e-12);
}

// A reference may lie elsewhere when a run goes on; another one, or none, is refused by its content.
TEST_F(DrrhoTraining, GoesOnWithTheSameReferenceWhereverItLies) {
  fs::copy(path("reference"), path("copy"), fs::copy_options::recursive);
  fs::copy(path("f32.h5"), path("copy.h5"));
  train(1, {"seed=8", "loss.name=mbcl"}, {}, path("other"));
  const auto key = [](const std::string& name) {
    return Keys{(name.ends_with(".h5") ? "reference.features=" : "reference.model=") + path(name)};
  };
  const Keys use{"reference.use=[shift]"};
  for (const std::string name : {"reference", "f32.h5"}) {
    const Keys keys = use + key(name), moved = key(name == "f32.h5" ? "copy.h5" : "copy");
    EXPECT_EQ(distance(train(1, keys, 1, {}, moved), train(1, keys)), 0) << name;
    const Experiment before(Config::load(path("run.yaml"), keys)), after(Config::load(path("run.yaml"), keys + moved));
    EXPECT_TRUE(differing_keys(before.config, after.config, before.schema).empty()) << name;
    const Keys none{name == "f32.h5" ? "reference.features=''" : "reference.model=''"};
    for (const Keys& other : {key("other"), key("f16.h5"), Keys{}}) {
      const std::string said = refused(keys, 1, 1, none + other);
      EXPECT_NE(said.find("is not the reference this run was started with"), std::string::npos) << name << ": " << said;
    }
    EXPECT_NE(refused({}, 1, 1, keys).find("is not the reference this run was started with (none"), std::string::npos);
  }
}

TEST_F(DrrhoTraining, SaysWhatDoesNotGo) {
  const auto says = [&](const Keys& keys, const std::string& part) {
    const std::string said = refused(keys);
    EXPECT_NE(said.find(part), std::string::npos) << said;
  };
  for (const std::string name : {"mbcl", "siglip"})
    says({online(), "loss.name=" + name}, "reference.use without shift");
  says({online(), "loss.name=rgcl", "loss.temperature=individual", "loss.u_domain=linear"},
       "reference.use without shift");
  says({online(), "reference.use=[select]", "reference.select_fraction=0.01"}, "raise it or batch_size");
  says({online(), "reference.use=[select]", "batch_size=2", "reference.select=rho", "reference.select_fraction=0.2"},
       "raise it or batch_size");
  says({online(), "reference.use=[select]", "reference.select_fraction=0.25", "accumulate=4"},
       "leaves 2 of the 8 pairs of a rank, which accumulate: 4 does not divide");
  EXPECT_NE(refused({online(), "reference.use=[select]", "reference.select=rho", "reference.select_fraction=0.06"}, 1)
                .find("reference.select_fraction: leaves 1 of the 16 pairs of a rank, alone in the step"),
            std::string::npos);
  says({online(), "model.context=13"}, "reads 12 tokens, this run 13");
  says({"reference.features=" + path("blots.h5")}, "is no file of features");
  says({"reference.use=[select]"}, "give reference.model or reference.features");
}

}  // namespace
}  // namespace trireme::test

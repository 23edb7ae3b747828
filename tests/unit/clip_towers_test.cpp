// What training does to CLIP's towers: batch statistics over ranks, patch dropout, checkpointed blocks, locked towers.
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/models/clip.h"
#include "framework/session.h"
#include "tests/gpu/blots.h"
#include "tests/max_difference.h"
#include "tests/needs.h"

#include <mutex>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::test {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

struct Trained {
  std::vector<double> losses;
  Tensors start, weights, gradients;
};

Tensors values_of(const Session& session) {
  Tensors values;
  for (const auto& p : session.parameters()) values[p.name] = p.value.detach().clone();
  return values;
}

double apart(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

double apart(const Tensors& a, const Tensors& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (const auto& [name, t] : a) worst = nan_max(worst, apart(t, b.at(name)));
  return worst;
}

double apart(const Trained& a, const Trained& b) {
  EXPECT_EQ(a.losses.size(), b.losses.size());
  double worst = apart(a.weights, b.weights);
  for (std::size_t i = 0; i < a.losses.size(); ++i) worst = nan_max(worst, std::abs(a.losses[i] - b.losses[i]));
  return worst;
}

const std::string vit =
    "model: {embed_dim: 16, image_size: 32, patch_size: 8, vision_width: 16, vision_layers: 3, "
    "vision_heads: 2, context: 12, vocab: 530, text_width: 16, text_layers: 2, text_heads: 2}\n";
const std::string resnet =
    "model: {embed_dim: 16, image_size: 32, resnet_layers: [1, 1, 1, 1], vision_width: 4, "
    "vision_heads: 2, context: 12, vocab: 530, text_width: 16, text_layers: 1, text_heads: 2}\n";

class ClipTowers : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder;
    prepare_blots(folder_->path / "blots.h5");
    for (const auto& [name, model] : {std::pair{"vit", vit}, {"resnet", resnet}})
      write_text(
          folder_->path / (std::string(name) + ".yaml"),
          "recipe: fastclip\nbatch_size: 16\nsteps: 200\nlog_every: 1\nthreads: 1\nprefetch: false\ndevice: cpu\n"
          "bucket_mib: 0.02\nfirst_bucket_mib: 0.01\noptimizer: {lr: 1.0e-3, weight_decay: 0.1}\n" +
              model);
  }
  void SetUp() override { TRIREME_NEEDS("PCRE2"); }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }

  using Each = std::function<void(Session&, std::int64_t step)>;  // after each step, on every rank
  static Trained train(const std::string& model, int ranks, std::int64_t steps, std::vector<std::string> keys,
                       const Each& each = {}) {
    keys.push_back("data.file=" + (folder_->path / "blots.h5").string());
    Trained result;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::load((folder_->path / (model + ".yaml")).string(), keys));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), world.size(),
                    std::uint64_t(e.train.seed), {.prefetch = false});
      if (!e.train.init_from.empty()) init_from(e.train.init_from, session, session.context().comm());
      if (world.rank() == 0) result.start = values_of(session);
      for (std::int64_t s = 0; s < steps; ++s) {
        session.context().now.step = s;
        const Batch batch = loader.next();
        session.context().now.epoch = batch.epoch;
        session.step(batch);
        if (each) each(session, s);
        if (world.rank() == 0) result.losses.push_back(session.loss());
      }
      if (world.rank() != 0) return;
      result.weights = values_of(session);
      for (const auto& p : session.parameters())
        if (p.value.grad().defined()) result.gradients[p.name] = p.value.grad().detach().clone();
    });
    return result;
  }

  static inline TempFolder* folder_ = nullptr;
};

bool is_statistic(const std::string& name) {
  return name.find("running_") != name.npos || name.ends_with("num_batches_tracked");
}

TEST_F(ClipTowers, CheckpointedBlocksGiveTheSameBits) {
  for (const std::string precision : {"f32", "f64", "bf16"})
    for (const std::string more : {"accumulate=1", "accumulate=2", "zero=1", "overlap=false", "hook.name=bf16"}) {
      if (precision == "f64" && more.starts_with("hook")) continue;  // hooks are for f32
      SCOPED_TRACE(precision + " " + more);
      const std::vector<std::string> keys{"precision=" + precision, more, "model.patch_dropout=0.3"};
      const Trained kept = train("vit", 2, 3, keys);
      auto again = keys;
      again.push_back("model.checkpointing=true");
      const Trained made = train("vit", 2, 3, again);
      EXPECT_EQ(apart(kept, made), 0);
      if (more == "zero=1") continue;  // there a rank's own shard counts
      EXPECT_EQ(apart(kept.gradients, made.gradients), 0);
    }
}

TEST_F(ClipTowers, PatchDropoutDoesNotDependOnRanksOrChunks) {
  const std::vector<std::string> keys{"precision=f64", "model.patch_dropout=0.5"};
  const Trained one = train("vit", 1, 4, keys);
  EXPECT_LE(apart(one, train("vit", 2, 4, keys)), 1e-10);
  EXPECT_LE(apart(one, train("vit", 4, 4, keys)), 1e-10);
  EXPECT_LE(apart(one, train("vit", 1, 4, {keys[0], keys[1], "accumulate=4"})), 1e-10);
  EXPECT_GT(apart(one, train("vit", 1, 4, {keys[0]})), 1e-4);
}

TEST_F(ClipTowers, SynchronisedStatisticsDoNotDependOnRanks) {
  const std::vector<std::string> keys{"precision=f64", "model.sync_bn=true"};
  const Trained one = train("resnet", 1, 4, keys);
  EXPECT_LE(apart(one, train("resnet", 2, 4, keys)), 1e-9);
  EXPECT_LE(apart(one, train("resnet", 4, 4, keys)), 1e-9);
  // By itself a rank has the closed form's values from ATen's own batch norm.
  EXPECT_LE(apart(one, train("resnet", 1, 4, {keys[0]})), 1e-9);
  EXPECT_GT(apart(one, train("resnet", 2, 4, {keys[0]})), 1e-6);  // each rank's own
}

// Two chunks of a step move them twice, their first pass without a graph not at all.
TEST_F(ClipTowers, StatisticsMoveOnceAChunk) {
  for (const std::int64_t chunks : {1, 2, 4}) {
    const std::string precision = chunks == 4 ? "bf16" : "f64";
    const Trained t = train("resnet", 1, 3, {"precision=" + precision, "accumulate=" + std::to_string(chunks)});
    for (const auto& [name, value] : t.weights)
      if (name.ends_with("num_batches_tracked")) {
        EXPECT_EQ(value.item<std::int64_t>(), 3 * chunks) << name;
      } else if (is_statistic(name)) {
        EXPECT_GT(apart(value, t.start.at(name)), 1e-6) << name;
      }
  }
}

TEST_F(ClipTowers, ASkippedStepMovesNoStatistics) {
  const Trained t = train("resnet", 1, 2, {"nonfinite=skip"}, [](Session& session, std::int64_t step) {
    if (step != 0) {
      EXPECT_TRUE(session.skipped());
      return;
    }
    at::NoGradGuard no_grad;
    for (const auto& p : session.parameters())
      if (p.name == "visual.conv1.weight") p.value.detach().fill_(std::numeric_limits<float>::infinity());
  });
  for (const auto& [name, value] : t.weights) {
    if (!is_statistic(name)) continue;
    EXPECT_TRUE(value.isfinite().all().item<bool>()) << name;
    if (name.ends_with("num_batches_tracked")) {
      EXPECT_EQ(value.item<std::int64_t>(), 1) << name;
    }
  }
}

TEST_F(ClipTowers, StatisticsTravelWithTheWeights) {
  Tensors first;
  Snapshot kept;
  std::mutex mutex;
  train("resnet", 2, 3, {"ema=0.9"}, [&](Session& session, std::int64_t step) {
    if (step != 2 || session.context().rank() != 0) return;
    std::lock_guard lock(mutex);
    first = values_of(session);
    kept = Snapshot::take([&](Archive& ar) { session.weights(ar); }, 0);
  });
  const Trained fresh = train("resnet", 1, 1, {}, [&](Session& session, std::int64_t) {
    kept.restore([&](Archive& ar) { session.weights(ar); });
    EXPECT_EQ(apart(values_of(session), first), 0);
  });
}

// OpenCLIP's groups from the back: the projection, the last block with its norm, the blocks before it, the embeddings.
TEST_F(ClipTowers, LockedTowersStay) {
  const auto moved = [&](const std::string& model, const std::vector<std::string>& keys) {
    const Trained t = train(model, 2, 2, keys);
    std::set<std::string> names;
    for (const auto& [name, value] : t.weights)
      if (!at::equal(value, t.start.at(name))) names.insert(name);
    return names;
  };
  const auto of = [](const std::set<std::string>& names, const std::string& part) {
    return std::count_if(names.begin(), names.end(), [&](const auto& n) { return n.starts_with(part); });
  };
  for (const std::string more :
       {"accumulate=1", "accumulate=2", "zero=1", "model.checkpointing=true", "precision=bf16"}) {
    SCOPED_TRACE(more);
    auto names = moved("vit", {"model.lock_image=true", more});
    EXPECT_EQ(of(names, "visual."), 0);
    EXPECT_GT(of(names, "transformer."), 10);
    names = moved("vit", {"model.lock_image=true", "model.lock_image_unlocked_groups=1", more});
    EXPECT_EQ(of(names, "visual."), 1);
    EXPECT_TRUE(names.contains("visual.proj"));
    names = moved("vit", {"model.lock_image=true", "model.lock_image_unlocked_groups=2", more});
    EXPECT_EQ(of(names, "visual.transformer.resblocks.2."), 12);
    EXPECT_EQ(of(names, "visual.ln_post."), 2);
    EXPECT_EQ(of(names, "visual."), 15);
    names = moved("vit", {"model.lock_text=true", "model.lock_text_unlocked_groups=3", more});
    EXPECT_EQ(of(names, "transformer.resblocks."), 24);
    EXPECT_EQ(of(names, "token_embedding") + of(names, "positional_embedding"), 0);
    names = moved("resnet", {"model.lock_image=true", more});
    EXPECT_EQ(of(names, "visual."), 0);  // batch statistics included
  }
}

// A row sees the patches that its sample chooses and no other, whatever stands beside it.
TEST(PatchDropout, IsKeyedBySample) {
  nn::ClipConfig config;
  config.image_size = 32;
  config.patch_size = 8;
  config.vision_width = 32;
  config.vision_heads = 2;
  config.vision_layers = 2;
  config.patch_dropout = 0.4;
  nn::Parameters params(3, at::kDouble, at::kCPU);
  const nn::Clip clip(config, 1, params);
  at::manual_seed(1);
  const at::Tensor pixels = at::randn({6, 3, 32, 32}, at::kDouble);
  const std::vector<std::int64_t> ids{11, 12, 13, 14, 15, 16}, other{14, 11};
  for (const bool fused : {false, true}) {
    const nn::Training all{7, 2, ids}, two{7, 2, other}, later{7, 3, ids};
    at::Tensor x = pixels.clone().requires_grad_();
    const at::Tensor f = clip.encode_image(x, fused, &all);
    const at::Tensor swapped = clip.encode_image(pixels.index({at::tensor({3, 0}, at::kLong)}), fused, &two);
    EXPECT_LE(apart(swapped.detach(), f.detach().index({at::tensor({3, 0}, at::kLong)})), 1e-13);
    EXPECT_GT(apart(clip.encode_image(pixels, fused, &later).detach(), f.detach()), 1e-3);
    EXPECT_GT(apart(clip.encode_image(pixels, fused).detach(), f.detach()), 1e-3);
    torch::autograd::backward({(f * at::randn_like(f)).sum()}, {});
    const at::Tensor touched = x.grad().abs().view({6, 3, 4, 8, 4, 8}).sum({1, 3, 5}).flatten(1).gt(0).sum(1);
    EXPECT_TRUE(touched.eq(9).all().item<bool>()) << touched;  // 9 = int(16 * 0.6)
  }
}

}  // namespace
}  // namespace trireme::test

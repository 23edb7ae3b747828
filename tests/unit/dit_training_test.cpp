// Training small diffusion transformers: noise and levels by sample, the loss of flow matching, prompts, mixed sizes on
// any number of ranks, export and back, own pictures, bad input.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "framework/base/tensor.h"
#include "framework/experiment.h"
#include "framework/io/checkpoint.h"
#include "framework/models/dit/flow_training.h"
#include "framework/models/dit/saved_dit.h"
#include "framework/session.h"
#include "recipes/dit_scenes/data.h"
#include "tests/fault/experiment.h"

#include <cmath>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

constexpr const char* tiny =
    "steps: 24\nbatch_size: 8\nlog_every: 1\nthreads: 1\nprefetch: false\ndevice: cpu\nema: 0.9\n"
    "optimizer: {lr: 4.0e-3, warmup: 2, weight_decay: 0.0}\nsizes: [16, 24]\nsampling: {prompts: 4, steps: 2}\n";
constexpr const char* tiny_scenes =
    "recipe: dit_scenes\nmodel: {heads: 1, head_dim: 32, rope_axes: [8, 12, 12], double_blocks: 1, single_blocks: 1, "
    "text_width: 16, text_tokens: 8}\ndata: {samples: 64}\n";

std::unique_ptr<Experiment> experiment(const std::string& yaml, const std::vector<std::string>& keys = {}) {
  return std::make_unique<Experiment>(Config::parse(yaml, "test.yaml", keys));
}

// The exact velocity of a picture that it knows: (x - x0) / sigma.
class Known : public Denoiser {
 public:
  explicit Known(at::Tensor x0) : x0_(std::move(x0)) {}
  const DenoiserInfo& info() const override { return info_; }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning&, const DitHooks&) override {
    return (x - x0_) / t.view({-1, 1, 1, 1, 1});
  }
  RopeTables rope(const Grid&, std::int64_t, const Offsets&) const override { return {}; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return {{"x0", x0_}}; }
  const nlohmann::json& config() const override { return config_; }

 private:
  at::Tensor x0_;
  DenoiserInfo info_;
  nlohmann::json config_;
};

at::Tensor row(std::initializer_list<std::int64_t> ids) {
  return at::tensor(at::ArrayRef<std::int64_t>(ids), at::kLong);
}

TEST(DitTraining, NoiseIsASamplesOwn) {
  const at::Tensor all = noise_of(1, "n", 0, row({5, 9, 2}), {3, 1, 7, 5});
  EXPECT_TRUE(at::equal(all[1], noise_of(1, "n", 0, row({9}), {3, 1, 7, 5})[0]));
  EXPECT_FALSE(at::equal(all[1], noise_of(1, "n", 1, row({9}), {3, 1, 7, 5})[0]));
  EXPECT_FALSE(at::equal(all[1], noise_of(2, "n", 0, row({9}), {3, 1, 7, 5})[0]));
  const at::Tensor many = noise_of(1, "n", 0, at::arange(100, at::kLong), {10000}).to(at::kDouble);
  EXPECT_NEAR(many.mean().item<double>(), 0, 0.005);
  EXPECT_NEAR(many.square().mean().item<double>(), 1, 0.005);
  EXPECT_NEAR(many.pow(4).mean().item<double>(), 3, 0.03);
  EXPECT_NEAR((many.narrow(1, 0, 5000) * many.narrow(1, 5000, 5000)).mean().item<double>(), 0, 0.005);
  EXPECT_TRUE(many.isfinite().all().item<bool>());
}

TEST(DitTraining, LossIsZeroForTheTrueVelocityAndEulerFindsThePicture) {
  const at::Tensor x0 = noise_of(1, "x0", 0, row({0, 1}), {3, 1, 4, 4});
  const at::Tensor e = noise_of(1, "e", 0, row({0, 1}), {3, 1, 4, 4});
  Known model(x0);
  EXPECT_LT(flow_loss(model, x0, e, at::tensor({0.3f, 0.9f}), {}).item<double>(), 1e-10);
  Known other(at::zeros_like(x0));
  EXPECT_NEAR(flow_loss(other, x0, e, at::ones({2}), {}).item<double>(), x0.square().mean().item<double>(), 1e-6);
  for (const std::int64_t steps : {1, 7}) {
    const at::Tensor found = plain_sample(model, e, {}, {}, 1, steps);
    EXPECT_LT((found - x0).abs().max().item<double>(), 1e-5) << steps;
  }
}

TEST(DitTraining, PromptsBecomeTokensOrAreRefusedByName) {
  const auto v = PromptVocabulary::of_scenes(8, {});
  const auto ids = v.ids("a large red striped circle at the top left on a blue background");
  ASSERT_EQ(ids.size(), 8u);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 2);
  const auto other = v.ids("a large red striped circle at the top left on a red background");
  // A sentence of an object of the ground's color has never been drawn, and is a prompt all the same.
  EXPECT_NE(ids[0], other[0]);
  EXPECT_TRUE(std::equal(ids.begin() + 1, ids.end(), other.begin() + 1));
  EXPECT_EQ(PromptVocabulary::from_json(v.to_json(), "x")
                .ids("a large red striped circle at the top left on a blue background"),
            ids);
  const auto refused = [&](const PromptVocabulary& of, const char* prompt, const char* word) {
    try {
      of.ids(prompt);
      ADD_FAILURE() << prompt;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  refused(v, "a large crimson circle at the top left on a blue background", "crimson");
  refused(v, "a large orange circle at the top left on a blue background", "orange");  // is not trained on
  refused(v, "a circle", "large");
  EXPECT_TRUE(v.knows("a large red striped circle at the top left on a blue background"));
  for (const char* prompt : {"a large orange circle at the top left on a blue background", "a circle", ""})
    EXPECT_FALSE(v.knows(prompt)) << prompt;
  refused(v, "", "large");
  refused(
      v,
      "a large red circle at the left, a medium blue star in the center and a medium red star at the top on a white "
      "background",
      "8");
  SceneRange few;  // 18 sentences, of which none is held out
  few.shapes = {1}, few.colors = {0, 5}, few.sizes = {1}, few.textures = {0};
  EXPECT_THROW(scene_within(few, 1, 0, ScenePart::held_out), UsageError);
  const auto words = PromptVocabulary::of_captions({"A red dog", "a red cat.", "A  tree"}, 4, 3);
  EXPECT_EQ(words.size(), 4);
  EXPECT_EQ(words.ids("red a"), (std::vector<std::int64_t>{2, 1, 0, 0}));
  refused(words, "a red tower", "tower");
  EXPECT_EQ(words.known_ids("a red tower"), (std::vector<std::int64_t>{1, 2, 0, 0}));
  for (const char* bad :
       {"[]", "{}", R"({"kind":"x","tokens":4,"words":[]})", R"({"kind":"words","tokens":-1,"words":[]})",
        R"({"kind":"words","tokens":4,"words":[1]})", R"({"kind":"words","tokens":4.5,"words":[]})"})
    EXPECT_THROW(PromptVocabulary::from_json(nlohmann::json::parse(bad), "x"), DataError) << bad;
}

TEST(DitTraining, SamplesDependOnTheirNumberAlone) {
  dit::DataConfig data;
  data.samples = 4000;
  const auto source = dit::open_source(data, 3, 16);
  const auto vocabulary = PromptVocabulary::of_scenes(8, {});
  const dit::FlowDataset rows(*source, vocabulary, {}, {.side = 16, .drop = 0.25, .seed = 3, .threads = 2});
  std::vector<std::int64_t> ids(4000);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(ids.size() - 1 - i);
  const Batch all = rows.read(ids, 1);
  const std::vector<std::int64_t> one{ids[7]};
  const Batch alone = rows.read(one, 1);
  for (const auto& [name, column] : alone.columns) EXPECT_TRUE(at::equal(column[0], all.columns.at(name)[7])) << name;
  EXPECT_FALSE(at::equal(rows.read(one, 2).columns.at("sigma"), alone.columns.at("sigma")));
  const at::Tensor dropped = all.columns.at("prompt").sum(1) == 0;
  EXPECT_NEAR(dropped.to(at::kDouble).mean().item<double>(), 0.25, 0.03);
  const at::Tensor logit = all.columns.at("sigma").to(at::kDouble).logit();
  EXPECT_NEAR(logit.mean().item<double>(), 0, 0.06);
  EXPECT_NEAR(logit.std().item<double>(), 1, 0.05);
  // No sentence that is held out is trained on.
  std::set<std::string> held_out;
  for (const auto id : source->held_out_ids()) held_out.insert(source->caption(id));
  EXPECT_GT(held_out.size(), 500u);
  for (const auto id : source->train_ids()) EXPECT_FALSE(held_out.contains(source->caption(id)));
}

struct Trained {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;
  std::map<std::string, double> metrics;
};

Trained train(int ranks, const std::string& yaml, const std::vector<std::string>& keys = {},
              const std::string& keep = {}) {
  Trained result;
  run_loopback(ranks, [&](Communicator& world) {
    const auto e = experiment(yaml, keys);
    Session session(world, e->train, *e->recipe);
    Loader loader(e->recipe->train_data(), e->recipe->train_ids(), e->train.batch_size, world.rank(), ranks,
                  std::uint64_t(e->train.seed), LoaderOptions{.prefetch = false});
    for (std::int64_t s = 0; s < e->train.steps; ++s) {
      session.context().now.step = s;
      session.step(loader.next());
      if (world.rank() == 0) result.losses.push_back(session.loss());
    }
    const auto metrics = session.evaluate();
    if (!keep.empty()) {
      Checkpoints checkpoints(keep + "/ckpt", 1, world);
      checkpoints.save(e->train.steps, Snapshot::take([&](Archive& ar) { session.state(ar); }, world.rank()), "{}");
      checkpoints.finish();
    }
    if (world.rank() != 0) return;
    result.metrics = metrics;
    for (const auto& p : session.parameters()) result.weights.push_back(p.value.detach().clone());
  });
  return result;
}

TEST(DitTraining, LossFallsAndRanksAndMicroBatchesChangeNothing) {
  const std::string yaml = std::string(tiny_scenes) + tiny;
  const Trained one = train(1, yaml);
  double first = 0, last = 0;
  for (int k = 0; k < 4; ++k) first += one.losses[std::size_t(k)], last += one.losses[one.losses.size() - 1 - k];
  EXPECT_LT(last, 0.85 * first);
  EXPECT_TRUE(one.metrics.contains("attribute_accuracy") && one.metrics.contains("attribute_accuracy_2x"));
  const Trained alone = train(1, yaml, {"steps=4"}), two = train(2, yaml, {"steps=4"}),
                parts = train(1, yaml, {"steps=4", "accumulate=2"});
  for (std::size_t i = 0; i < alone.losses.size(); ++i) {
    EXPECT_NEAR(two.losses[i], alone.losses[i], 2e-5) << i;
    EXPECT_NEAR(parts.losses[i], alone.losses[i], 2e-5) << i;
  }
  for (const auto& [name, value] : alone.metrics) EXPECT_NEAR(two.metrics.at(name), value, 1e-4) << name;
}

TEST(DitTraining, ExportIsTheAveragedModelWithItsPrompts) {
  const TempFolder folder;
  const std::string run = (folder.path / "run").string(), out = (folder.path / "out").string();
  fs::create_directories(run + "/ckpt");
  train(1, std::string(tiny_scenes) + tiny, {"steps=3"}, run);
  const SavedDit saved = dit_of_run(run, "newest", true, at::kCPU, at::kFloat);
  export_dit(saved, out, 20000);
  int shards = 0;
  for (const auto& file : fs::directory_iterator(out)) {
    shards += file.path().filename().string().starts_with("diffusion_pytorch_model-");
    EXPECT_LT(fs::file_size(file), 40000u) << file.path();
  }
  EXPECT_GT(shards, 1);
  const auto model = denoiser_from_folder(out, at::kCPU, at::kFloat);
  EXPECT_EQ(model->info().base_side, 6);
  EXPECT_EQ(model->info().base_text, 8);
  const auto prompts = prompts_from_folder(out, *model);
  const std::vector<std::string> text{"a large red circle at the left on a white background"};
  const at::Tensor x = noise_of(1, "x", 0, row({0}), {12, 1, 12, 12}), t = at::full({1}, 0.5, at::kFloat);
  EXPECT_TRUE(
      at::equal(model->forward(x, t, prompts->encode(text)), saved.model->forward(x, t, saved.prompts->encode(text))));
  const SavedDit raw = dit_of_run(run, "newest", false, at::kCPU, at::kFloat);
  EXPECT_FALSE(
      at::equal(model->forward(x, t, prompts->encode(text)), raw.model->forward(x, t, raw.prompts->encode(text))));
  EXPECT_FALSE(at::equal(prompts->encode(text).text, prompts->none(1).text));
  fs::remove(out + "/prompts.safetensors");
  EXPECT_THROW(prompts_from_folder(out, *model), DataError);
}

TEST(DitTraining, VideosOfWansLayout) {
  const Trained t = train(1,
                          std::string("recipe: dit_video\nmodel: {heads: 1, head_dim: 32, layers: 2, text_width: 16, "
                                      "text_tokens: 8}\ndata: {samples: 64, frames: 3}\n") +
                              tiny,
                          {"steps=8"});
  EXPECT_LT(t.losses.back(), t.losses.front());
  EXPECT_TRUE(t.metrics.contains("attribute_accuracy"));
  const Scene scene = scene_within({}, 1, 4);
  const auto at = [&](std::int64_t f) { return center_of(dit::moved(scene, 1, 4, f, 3, 0.9).objects[0], 90, 90); };
  EXPECT_NEAR(at(1).x, center_of(scene.objects[0], 90, 90).x, 1e-4);
  EXPECT_NEAR(std::hypot(at(2).x - at(0).x, at(2).y - at(0).y), 27, 1e-3);
}

TEST(DitTraining, OwnPicturesWithCaptions) {
  if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  const TempFolder folder;
  draw_pictures(folder.path / "own", 1, 40);
  const Trained t =
      train(1, std::string(tiny_scenes) + tiny, {"steps=3", "data.source=" + (folder.path / "own").string()});
  EXPECT_TRUE(t.metrics.contains("loss"));
  EXPECT_FALSE(t.metrics.contains("attribute_accuracy"));
}

TEST(DitTraining, WhatCannotWorkIsRefused) {
  const std::string yaml = std::string(tiny_scenes) + tiny;
  const std::vector<std::string> bad[] = {{"sizes=[18]"},
                                          {"sizes=[]"},
                                          {"data.colors=[red]"},
                                          {"data.colors=[red, crimson]"},
                                          {"data.shapes=[]"},
                                          {"model.rope_axes=[8, 12]"},
                                          {"model.rope_axes=[9, 11, 12]"}};
  for (const auto& keys : bad) EXPECT_THROW(train(1, yaml, keys), UsageError) << keys[0];
  EXPECT_THROW(train(1, yaml, {"data.source=/nowhere/at/all.h5"}), Error);
  EXPECT_THROW(dit_of_run("/nowhere", "newest", true, at::kCPU, at::kFloat), Error);
}

}  // namespace
}  // namespace trireme::test

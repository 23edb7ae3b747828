// No host synchronisation inside a step on a GPU: torch reports every one as an error while steps are taken.
#include "comm/device.h"
#include "comm/local/self.h"
#include "data/loader.h"
#include "framework/config/config.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "tests/gpu/blots.h"
#include "tests/needs.h"
#include "tests/unit/regression_recipe.h"

#include <c10/cuda/CUDAFunctions.h>

namespace trireme::test {
namespace {

void steps_without_waiting(const std::string& experiment, const std::string& precision,
                           const std::vector<std::string>& more = {}) {
  if (device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  if (experiment.find("fastclip") != std::string::npos) TRIREME_NEEDS("PCRE2");  // the tokenizer does
  TempFolder folder;
  const std::string data = (folder.path / "blots.h5").string(), file = (folder.path / "run.yaml").string();
  prepare_blots(data);
  std::ofstream(file) << experiment;
  std::vector<std::string> overrides{"precision=" + precision, "log_every=1000", "steps=1000", "optimizer.clip_norm=1"};
  if (experiment.find("fastclip") != std::string::npos) overrides.push_back("data.file=" + data);
  overrides.insert(overrides.end(), more.begin(), more.end());
  Config config = Config::load(file, overrides);
  TrainConfig train;
  auto recipe = Recipes::create(config.string_at("recipe"), config.place("recipe"));
  config.read([&](Fields& f) {
    train.fields(f);
    recipe->fields(f);
  });
  const auto world = make_self();
  Session session(*world, train, *recipe);
  ASSERT_TRUE(session.context().device().is_cuda());
  Loader loader(recipe->train_data(), recipe->train_ids(), train.batch_size, 0, 1, 1);
  const auto step = [&](std::int64_t k) {
    session.context().now.step = k;
    const Batch batch = loader.next();
    session.context().now.epoch = batch.epoch;
    session.step(batch);
  };
  // Libraries start, the bucket order is adopted, a step that can be replayed is recorded.
  for (std::int64_t k = 0; k < 5; ++k) step(k);
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  for (std::int64_t k = 5; k < 10; ++k) {
    try {
      step(k);
    } catch (const std::exception& e) {
      ADD_FAILURE() << precision << ", step " << k << ": " << e.what();
      break;
    }
  }
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  EXPECT_TRUE(std::isfinite(session.loss()));
  EXPECT_FALSE(session.skipped());
}

TEST(Gpu, FastClipNeverWaits) {
  for (const char* precision : {"f32", "bf16", "fp16"}) steps_without_waiting(blots_experiment, precision);
  steps_without_waiting(blots_experiment + "ema: 0.99\n", "f32");
  // More than 3,072 tokens: ATen's gradient of an embedding takes another way there.
  std::string many = blots_experiment;
  many.replace(many.find("batch_size: 64"), 14, "batch_size: 512");
  for (const char* precision : {"f32", "bf16"}) steps_without_waiting(many, precision);
  for (const char* rule : {"lamb", "lion", "sgd", "nesterov"})
    steps_without_waiting(blots_experiment, "bf16", {std::string("optimizer.name=") + rule});
}
// Steps with and without a finite loss, read once at the end: counted, and the running average moved by none of the
// bad.
TEST(Gpu, SkippedStepsAreCountedOnTheDevice) {
  if (device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  TrainConfig config = small();
  config.device = "cuda";
  config.communicator = "mpi";
  config.precision = "f32";
  config.ema = 0.5;
  const auto world = make_self();
  Regression recipe;
  Session session(*world, config, recipe);
  const auto average = [&] {
    const Snapshot s = Snapshot::take([&](Archive& ar) { session.state(ar); }, 0);
    const auto bytes = s.entries.at("average/w1").bytes.span();
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  std::vector<std::vector<std::byte>> averages;
  for (std::int64_t k = 0; k < 12; ++k) {
    recipe.poison = k == 1 || (k >= 5 && k <= 9) ? std::nan("") : 0;
    session.context().now.step = k;
    session.step(recipe.rows.read(std::vector<std::int64_t>{k, k + 1}, 0));
    averages.push_back(average());
  }
  const SkippedSteps::Seen seen = session.take_skipped();
  EXPECT_EQ(seen.total, 6);
  EXPECT_EQ(seen.first, 2);
  EXPECT_EQ(seen.in_a_row, 5);
  EXPECT_EQ(session.take_skipped().total, 0);
  EXPECT_NE(averages[3], averages[4]);
  for (std::size_t k = 5; k <= 9; ++k) EXPECT_EQ(averages[k], averages[4]) << k;
  EXPECT_NE(averages[10], averages[9]);
}

TEST(Gpu, TransformerNeverWaits) {
  for (const char* graph : {"graph=auto", "graph=off"})
    steps_without_waiting("recipe: transformer\nbatch_size: 64\ndevice: cuda\nmodel: {layers: 2}\nsamples: 2000\n",
                          "bf16", {graph});
}

TEST(Gpu, MlpNeverWaits) {
  steps_without_waiting("recipe: mlp\nbatch_size: 64\ndevice: cuda\nsizes: [32, 64, 10]\nsamples: 2000\n", "f32");
}

}  // namespace
}  // namespace trireme::test

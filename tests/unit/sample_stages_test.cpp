// A job whose method takes more than one pass (SuperGen's sketch, then its refinement): every step is one of the job's,
// for stops, saved states and the bar.
#include "comm/local/self.h"
#include "data/file.h"
#include "trainers/sample/engine.h"
#include "trainers/sample/model.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;

class Stages : public ::testing::Test {
 protected:
  Stages() {
    std::string name = (fs::temp_directory_path() / "trireme-XXXXXX").string();
    dir_ = mkdtemp(name.data());
    std::ofstream(dir_ + "/config.json")
        << R"({"_class_name": "FluxTransformer2DModel", "in_channels": 48, "num_attention_heads": 2,
               "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": [4, 6, 6],
               "joint_attention_dim": 12, "pooled_projection_dim": 8, "guidance_embeds": false,
               "trireme": {"patch": 4, "base_side": 4, "base_text": 3, "latent_factor": 1}})";
    std::ofstream(dir_ + "/job.yaml")
        << "model: " << dir_ << "/config.json\nweights: random\nprompts: [one, two, three]\nsize: [32, 48]\nsteps: 6\n"
        << "method: supergen\nlatents: true\nbatch: 2\nguidance: 2\nsupergen: {loop_step: 4, refine_steps: 4, "
        << "sketch: [16, 16], cache: {base: 1.5, ret_steps: 1}}\n";
  }
  ~Stages() override { fs::remove_all(dir_); }

  // The first batch in OUT, by a new process as it were; stops after `steps` steps. Below 0: dies after so many.
  bool run(const std::string& out, int steps, StepBar* bar = nullptr, std::vector<std::string> overrides = {}) const {
    const auto self = make_self();
    const SampleJob job = read_job(dir_ + "/job.yaml", overrides);
    const auto& c = job.arms[0];
    const auto config = read_model_config(c);
    const auto model = load_model(c, config, at::kCPU);
    const auto codec = latent_codec(3, 1);
    const auto conditions = read_conditions(c, model->info(), config);
    Sampler& method = *c.samplers.at(c.method);
    Traced world(*self);
    Groups groups = make_groups(c, method, place(c, world), world);
    SampleContext context(*groups.tensors, *model, *codec, at::kCPU, at::kFloat);
    context.steps = c.steps, context.height = c.size[0], context.width = c.size[1];
    method.setup(context);
    fs::create_directories(dir_ + "/" + out);
    Engine engine({c, method, *conditions, dir_ + "/" + out}, groups, context, bar);
    EXPECT_EQ(engine.steps_of(1), method.steps_in_all(c.steps));
    int taken = 0;
    return engine.run(0, [&] {
      if (++taken == -steps) throw std::runtime_error("killed");
      return taken == steps;
    });
  }
  std::string read(const std::string& name) const {
    const auto bytes = read_file(dir_ + "/" + name, 1 << 26);
    return {bytes.begin(), bytes.end()};
  }
  nlohmann::json batch(const std::string& out) const { return nlohmann::json::parse(read(out + "/batch_00000.json")); }
  std::string dir_;
};

// 6 steps of the sketch and 4 that refine it, cut between any two.
TEST_F(Stages, AStopIsHeardInTheSketchAndTheJobGoesOnThere) {
  StepBar whole(false, 20);
  ASSERT_TRUE(run("whole", 0, &whole));
  EXPECT_EQ(whole.state().step, 10);
  EXPECT_EQ(batch("whole")["steps"], 10);
  EXPECT_EQ(batch("whole")["report"]["all_gathers"], 4);
  for (const int cut : {3, 6, 8}) {
    const std::string out = "cut" + std::to_string(cut);
    EXPECT_FALSE(run(out, cut));
    StepBar bar(false, 20);
    ASSERT_TRUE(run(out, 0, &bar));
    for (const char* picture : {"/00000.safetensors", "/00001.safetensors"})
      EXPECT_TRUE(read("whole" + std::string(picture)) == read(out + picture)) << cut;
    const auto done = batch(out);
    EXPECT_EQ(done["resumed_at"], cut);
    EXPECT_EQ(done["steps"], 10 - cut);
    EXPECT_EQ(done["report"]["skip_maps"], batch("whole")["report"]["skip_maps"]) << cut;
    EXPECT_EQ(bar.state().step, 10 - cut);
    EXPECT_EQ(bar.state().total, 20 - cut) << "steps that need not be taken do not count";
  }
}

// Killed: the newest state of save_every, in the sketch and in the refinement.
TEST_F(Stages, SaveEveryCountsTheStepsOfBoth) {
  for (const int cut : {5, 9}) {
    const std::string out = "killed" + std::to_string(cut);
    EXPECT_THROW(run(out, -cut, nullptr, {"save_every=4"}), std::runtime_error);
    ASSERT_TRUE(run(out, 0, nullptr, {"save_every=4"}));
    EXPECT_EQ(batch(out)["resumed_at"], cut / 4 * 4);
  }
}

// Without a sketch, and without a refinement.
TEST_F(Stages, CountsWhatThereIs) {
  for (const auto& [refining, steps] : {std::pair{"0", 6}, {"6", 6}, {"5", 11}}) {
    StepBar bar(false, steps);
    const std::string out = std::string("refine") + refining;
    ASSERT_TRUE(run(out, 0, &bar, {std::string("supergen.refine_steps=") + refining}));
    EXPECT_EQ(bar.state().step, steps) << refining;
    EXPECT_EQ(batch(out)["steps"], steps);
  }
}

}  // namespace
}  // namespace trireme::sample

// links: comm
// `trireme sample` on ranks that are processes: a killed one ends the job, and the same command goes on at the last
// saved step, to the pictures of the unbroken run.
#include "tests/fault/stop_at.h"

#include <regex>

namespace trireme::test {
namespace {

class SampleOnRanks : public ::testing::Test {
 protected:
  SampleOnRanks() {
    write_text(dir() / "config.json",
               R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 48, "num_layers": 1,
                   "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2,
                   "joint_attention_dim": 24, "pooled_projection_dim": 16, "guidance_embeds": false,
                   "axes_dims_rope": [8, 12, 12]})");
    write_text(dir() / "trireme.json", R"({"latent_factor": 2, "base_side": 16, "base_text": 8})");
    write_text(dir() / "job.yaml",
               "model: config.json\nweights: random\nprompts: [one, two]\nsize: [64, 64]\nsteps: 120\nlatents: true\n"
               "threads: 1\nsave_every: 10\nguidance: 2\n");
  }
  const fs::path& dir() const { return folder_.path; }
  Words on(int ranks, const std::string& out, Words more = {}) const {
    Words words = {"sample", "job.yaml", "--ranks", std::to_string(ranks), "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  bool saved(const std::string& out) const {
    std::error_code gone;
    for (const auto& entry : fs::recursive_directory_iterator(dir() / out, gone))
      if (entry.path().filename() == "manifest.json" && entry.path().string().find(".tmp") == std::string::npos)
        return true;
    return false;
  }
  void expect_same_pictures(const std::string& a, const std::string& b) const {
    for (const char* name : {"00000.png", "00000.safetensors", "00001.png", "00001.safetensors"}) {
      EXPECT_FALSE(read_text(dir() / a / "plain" / name).empty());
      EXPECT_EQ(read_text(dir() / a / "plain" / name), read_text(dir() / b / "plain" / name)) << name;
    }
  }

 private:
  TempFolder folder_;
};

TEST_F(SampleOnRanks, GoOnAfterOneWasKilled) {
  const Outcome whole = run_program({"sample", "job.yaml", "--out", "whole"}, {.folder = dir()});
  ASSERT_EQ(whole.code, 0) << whole;
  {
    Program broken(on(2, "broken"), {dir(), stopping_at("plain/state/batch_00001/step_00000010/")});  // rank 1's
    const pid_t rank = await_stopped(broken);
    ASSERT_TRUE(rank > 0 && rank == broken.rank(1));
    kill(rank, SIGKILL);
    const Outcome o = broken.wait();
    EXPECT_EQ(o.code, 4) << o;
    EXPECT_TRUE(broken.none_left());
  }
  EXPECT_FALSE(fs::exists(dir() / "broken" / "report.json"));
  const Outcome again = run_program(on(2, "broken"), {.folder = dir()});
  ASSERT_EQ(again.code, 0) << again;
  expect_same_pictures("whole", "broken");
  EXPECT_TRUE(std::regex_search(read_text(dir() / "broken" / "report.json"), std::regex(R"("resumed_at": [1-9])")));
}

TEST_F(SampleOnRanks, SaveAndLeaveWhenTold) {
  Program stopped({"sample", "job.yaml", "--out", "stopped", "save_every=0"},
                  {dir(), stopping_at("plain/state/batch_00000/")});
  ASSERT_EQ(await_stopped(stopped), stopped.pid());
  stopped.signal(SIGTERM);
  stopped.signal(SIGCONT);
  const Outcome o = stopped.wait();
  ASSERT_EQ(o.code, 85) << o;
  EXPECT_TRUE(saved("stopped"));
  EXPECT_TRUE(fs::exists(dir() / "stopped" / "report.json"));
  ASSERT_EQ(run_program(on(2, "stopped"), {.folder = dir()}).code, 0);
  ASSERT_EQ(run_program({"sample", "job.yaml", "--out", "whole"}, {.folder = dir()}).code, 0);
  expect_same_pictures("whole", "stopped");
}

TEST_F(SampleOnRanks, OneLineForBadInput) {
  for (const auto& [word, code] :
       std::vector<std::pair<std::string, int>>{{"size=[62, 64]", 2}, {"memory_capacity=0.0001", 6}}) {
    const Outcome o = run_program(on(2, "bad", {word}), {.folder = dir()});
    EXPECT_EQ(o.code, code) << word << o;
    EXPECT_EQ(o.errors().size(), 1u) << word << o;
  }
}

}  // namespace
}  // namespace trireme::test

// links: comm
// Ranks of `trireme sample` and `trireme sweep` rightly work for long without each other; where one hangs all the same,
// the job ends and says so. TRIREME_FAULTY: trireme with the sampler of tests/fault/recipe.
#include "tests/fault/stop_at.h"

namespace trireme::test {
namespace {

using std::chrono::seconds;

std::string faulty_program() {
  const char* path = std::getenv("TRIREME_FAULTY");
  return path ? path : fs::path(program_path()).parent_path() / "trireme_faulty";
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// One line, exit code 4, soon after the fault, and nothing of the job is left.
void expect_named(Program& p, const fs::path& folder, const Words& words) {
  const Outcome out = p.wait(seconds(90));
  EXPECT_EQ(out.code, 4) << out;
  EXPECT_TRUE(p.none_left());
  const Words errors = out.errors();
  ASSERT_EQ(errors.size(), 1u) << out;
  for (const auto& w : words) EXPECT_NE(errors[0].find(w), std::string::npos) << w << "\n" << out;
  EXPECT_NE(errors[0].find("the last calls of every rank are in run/hang.rank*.json"), std::string::npos) << out;
  EXPECT_TRUE(fs::exists(folder / "run/hang.rank0.json"));
}

void write_job(const fs::path& folder, const std::string& more) {
  write_text(folder / "config.json",
             R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 48, "num_layers": 1,
                 "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 24,
                 "pooled_projection_dim": 16, "guidance_embeds": false, "axes_dims_rope": [8, 12, 12]})");
  write_text(folder / "trireme.json", R"({"latent_factor": 2, "base_side": 16, "base_text": 8})");
  write_text(folder / "job.yaml",
             "model: config.json\nweights: random\nprompts: [one, two, three]\nsize: [16, 16]\nsteps: 8\n"
             "threads: 1\nmethod: stuck\nwatchdog: {first: 60, later: 4, warn: 0}\n" +
                 more);
}

Program::Options faulty(const fs::path& folder) {
  Program::Options o{folder};
  o.program = faulty_program();
  return o;
}

// Of three ranks that draw a picture each, two wait for longer than the limit, as they should; then the third stops.
TEST(HangApart, ARankThatDrawsIsWaitedForAndOneThatStopsIsNot) {
  TempFolder folder;
  write_job(folder.path, "stuck: {kind: stop, picture: 2, at: 6, ms: 1000}\n");
  Program p({"sample", "job.yaml", "--out", "run", "--ranks", "3"}, faulty(folder.path));
  expect_named(p, folder.path,
               {"of \"job\" (all_reduce of 1 i64", "rank 2 did not answer", "ranks 0,1 wait",
                "rank 2: stopped (its process does not answer)"});
  const double fault = std::atof(read_text(folder.path / "fault.time").c_str());
  EXPECT_GT(fault, 0) << "it was ended while it drew";
  EXPECT_LT(now() - fault, 30);
}

// One of two that share a picture, while two others have drawn theirs.
TEST(HangApart, ARankThatSpinsInASharedPictureIsNamed) {
  TempFolder folder;
  write_job(folder.path,
            "sequence: ulysses\nranks_per_picture: 2\n"
            "stuck: {kind: spin, picture: 1, rank: 1, at: 3}\n");
  Program p({"sample", "job.yaml", "--out", "run", "--ranks", "4", "prompts=[one, two]"}, faulty(folder.path));
  expect_named(p, folder.path, {"did not enter it", "rank 3: in sampling after step 3, last collective "});
}

// The rank of a task that writes what it came to.
TEST(HangApart, ARankOfASweepThatStopsIsNamed) {
  TempFolder folder;
  write_text(folder.path / "backbone.yaml",
             "recipe: causal_lm\nsteps: 2\nbatch_size: 8\nthreads: 1\neval_every: 0\ncheckpoint: {every: 0}\n"
             "model: {layers: 1, width: 32, intermediate: 64, heads: 2, kv_heads: 1, vocab: 300}\n"
             "text: {sources: [arithmetic], length: 64, arithmetic: 50}\n");
  const std::string task =
      "{data: arithmetic, level: 1, length: 64, train: 16, held_out: 8, test: 0, template: plain, "
      "ranks: 1}\n";
  write_text(folder.path / "sweep.yaml",
             "recipe: lora_sweep\nmodel: backbone\nthreads: 1\ncheckpoint: {every: 0}\n"
             "watchdog: {first: 60, later: 4, warn: 0}\nsearch: {lr: [2.0e-2], rank: [4], batch_size: [4]}\n"
             "early_exit: {eval_fraction: 0.1, val_cap: 4}\ntasks:\n  one: " +
                 task + "  other: " + task);
  ASSERT_EQ(run_program({"train", "backbone.yaml", "--out", "backbone"}, {.folder = folder.path}).code, 0);
  Program::Options o{folder.path};
  o.environment = stopping_at("run/other/losses.jsonl/");
  Program p({"sweep", "sweep.yaml", "--out", "run", "--ranks", "2"}, o);
  expect_named(p, folder.path, {"of \"job", "did not answer", ": stopped (its process does not answer)"});
  // It goes on, also with other limits.
  const Outcome again = run_program({"sweep", "sweep.yaml", "--out", "run", "--ranks", "2", "watchdog.later=60"},
                                    {.folder = folder.path});
  EXPECT_EQ(again.code, 0) << again;
}

}  // namespace
}  // namespace trireme::test

// A sweep whose ranks are a pipeline that all jobs fill: the same sweep as with gathered layers, to the bit where it
// was stopped, with bytes by formula, chosen once by what steps take.
#include "tests/unit/said.h"
#include "tests/unit/task_run.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::sweep {
namespace {

using test::said;
namespace fs = std::filesystem;

struct PipelineRun : TaskRun {
  Result by(const char* parallel, int ranks) {
    sweep.parallel = parallel;
    return on(ranks);
  }
  // Losses, exits, winner and weights.
  void expect_same(const Result& a, const Result& b, const std::string& what) {
    SCOPED_TRACE(what);
    EXPECT_TRUE(b.pipelined && !a.pipelined);
    expect_close(a.losses, b.losses, 2e-4);
    EXPECT_EQ(exits(a.decisions), exits(b.decisions));
    EXPECT_EQ(a.outcome.winner, b.outcome.winner);
    const auto sorted = [](const Result& r) {
      std::map<std::string, at::Tensor> all(r.best[0].begin(), r.best[0].end());
      return all;
    };
    const auto x = sorted(a), y = sorted(b);
    ASSERT_EQ(x.size(), y.size());
    for (const auto& [job, w] : x) EXPECT_TRUE(at::allclose(w, y.at(job), 1e-3, 1e-4)) << job;
  }
  void expect_same_on(std::initializer_list<int> ranks, const std::string& what) {
    for (const int n : ranks) expect_same(by("gather", n), by("pipeline", n), what + ", " + std::to_string(n));
  }
};

TEST_F(PipelineRun, IsTheGatheredSweep) {
  expect_same_on({2, 4}, "early exit");
  sweep.early_exit.cut = "asha";
  expect_same_on({2}, "asha");
}

// The norm that clips is of all layers.
TEST_F(PipelineRun, ClipsByAllLayers) {
  task.search.lr = {1e-2};
  sweep.early_exit.enabled = false;
  sweep.train.clip_norm = 0;
  const Result unclipped = by("gather", 2);
  sweep.train.clip_norm = 0.02;
  const Result clipped = by("gather", 2);
  expect_same(clipped, by("pipeline", 2), "2 ranks");
  expect_same(clipped, by("pipeline", 4), "4 ranks");
  const auto x = by_line(unclipped.losses), y = by_line(clipped.losses);
  EXPECT_TRUE(std::ranges::any_of(x, [&](const auto& line) { return std::abs(line.second - y.at(line.first)) > 5e-3; }))
      << "clipping changed nothing";
}

// Two places for six jobs of two sizes: they rotate, park and move; masks and pieces are the jobs' own.
TEST_F(PipelineRun, JobsRotateAndPark) {
  sweep.slots = 1;
  sweep.lora.dropout = 0.3;
  expect_same_on({2}, "rotation");
  sweep.slots = 3;
  sweep.train.accumulate = 3;
  expect_same_on({2}, "pieces");
  sweep.train.accumulate = 1, sweep.slots = 1;
  task.search = {{1e-3, 5e-3, 2e-2}, {4}, {2, 4}};  // of which ranks without jobs take some
  expect_same_on({2}, "taken");
}

TEST_F(PipelineRun, ABrokenJobEndsAlone) {
  task.search.lr = {1e-3, 1e30};
  task.search.rank = {4};
  sweep.early_exit.keep_ratio = 1;
  const Result r = by("pipeline", 2);
  int diverged = 0;
  for (const auto& j : r.outcome.jobs) diverged += j.candidate.lr > 1 && j.end == "diverging";
  EXPECT_EQ(diverged, 2);
  task.search.lr = {1e-3};
  const auto x = by_line(by("gather", 2).losses), y = by_line(r.losses);
  for (const auto& [key, value] : x) EXPECT_NEAR(value, y.at(key), 2e-4 * (1 + std::abs(value))) << key;
}

// Stopped again and again: the same files, to the bit, however long bursts were.
TEST_F(PipelineRun, GoesOnToTheBit) {
  sweep.slots = 2;
  sweep.lora.dropout = 0.2;
  const Result whole = by("pipeline", 2);
  sweep.checkpoint_every = 5;
  for (const int every : {2, 7}) {
    const std::string where = folder();
    bool over = false;
    int runs = 0;
    for (; !over; ++runs) {
      run_loopback(2, [&](Communicator& world) {
        int ticks = 0;
        const auto r = run(world, where, [&] { return ++ticks > every; });
        if (world.rank() == 0) over = r.has_value();
      });
      ASSERT_LT(runs, 200);
    }
    EXPECT_GE(runs, 2);
    EXPECT_EQ(text_of(where + "/losses.jsonl"), whole.losses);
    EXPECT_EQ(text_of(where + "/decisions.jsonl"), whole.decisions);
  }
}

TEST_F(PipelineRun, GoesOnGatheredOnOtherRanks) {
  const Result whole = by("pipeline", 2);
  sweep.checkpoint_every = 5;
  const std::string where = folder();
  run_loopback(2, [&](Communicator& world) {
    int ticks = 0;
    EXPECT_FALSE(run(world, where, [&] { return ++ticks > 9; }));
  });
  ::testing::internal::CaptureStderr();
  const Result rest = alone(where);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("goes on with gathered layers: a pipeline takes"),
            std::string::npos);
  expect_close(whole.losses, rest.losses, 2e-4);
  EXPECT_EQ(exits(whole.decisions), exits(rest.decisions));
}

// Of rank 0: activations of every token once, a sum a job and step, slices of its adapters to their stages once, and of
// all adapters to their ranks once a burst.
TEST_F(PipelineRun, SendsByFormula) {
  sweep.early_exit.enabled = false;
  sweep.steal = false;
  task.search = {{1e-3, 5e-3}, {2, 8}, {2}};
  const std::size_t jobs = 4, hidden = 32, epochs = 2, samples = 24;
  std::size_t tokens = 0;
  for (std::int64_t i = 0; i < std::int64_t(samples); ++i) tokens += sequence(i).ids.size();
  const std::size_t steps = epochs * samples / 2;
  for (const std::size_t ranks : {2, 4}) {
    const Result r = by("pipeline", int(ranks));
    EXPECT_EQ(r.counts.at("all_to_all u8"), jobs * (epochs * tokens * hidden * 4 + steps * 16));
    // Ranks are padded to 8; a layer's targets are 32, 32, 16 and 16 wide behind 32, 48, 48 and 32 behind 32, 32
    // and 48.
    const std::size_t adapter = 4 * 8 * (64 + 64 + 48 + 48 + 80 + 80 + 80);
    const std::size_t out = jobs / ranks * (3 * adapter + 2 * ranks) * 4, back = jobs * 3 * adapter / ranks * 4;
    std::size_t bursts = 0;
    for (std::size_t s = 1; s <= steps; ++s)
      bursts += evaluates_at(sweep.early_exit, std::int64_t(steps), std::int64_t(s));
    const std::size_t sent = r.counts.at("all_to_all f32");
    EXPECT_EQ((sent - out) % back, 0u);
    EXPECT_GE((sent - out) / back, bursts);  // more where bursts were cut short by the clock
    EXPECT_LE((sent - out) / back, steps);
    // Layers travel whole in evaluations alone: 7,744 values each.
    EXPECT_GT(r.outcome.gathers, 0);
    EXPECT_EQ(r.outcome.gathered_bytes % (4 * 7744), 0);
    EXPECT_FALSE(r.counts.contains("all_gather u8") && r.counts.at("all_gather u8") > 4 * 4 * 7744 / ranks);
  }
}

TEST_F(PipelineRun, IsRefusedWhereItCannotBe) {
  sweep.parallel = "pipeline";
  EXPECT_SAYS(said([&] { on(3); }), "its 4 layers do not divide by 3 ranks");
  EXPECT_SAYS(said([&] { alone(); }), "a pipeline takes several ranks");
  sweep.lora.targets = {"model.layers.0.self_attn.q_proj"};
  EXPECT_SAYS(said([&] { on(2); }), "the layers of a rank would have no adapter");
  const std::string yaml = "recipe: lora_sweep\nmodel: m\nexecution: {parallel: pipeline}\ntasks: {t: {data: f.jsonl, ";
  EXPECT_SAYS(said([&] { parse_sweep(yaml + "objective: dpo}}", "f"); }), "preference pairs fill no pipeline");
  EXPECT_SAYS(said([&] { parse_sweep(yaml + "ranks: 1}}", "f"); }), "one rank is no pipeline");
}

// Before anything is asked of other ranks, or stages would go by layers of another number.
TEST_F(PipelineRun, RefusesModelsThatCannotBe) {
  sweep.parallel = "pipeline";
  const Instructions data = sequences(false);
  const auto made_of = [&](const CausalLmConfig& config) {
    std::string all;
    run_loopback(2, [&](Communicator& world) {
      const std::string one = said([&] {
        Executor(sweep, task, backbone_of(CausalLm::random(config, 3, at::kCPU, at::kFloat), true), data, world,
                 dir / "refused");
      });
      if (world.rank() == 1) all = one;
    });
    return all;
  };
  CausalLmConfig c = tiny().config();
  c.by_layer = true;
  EXPECT_SAYS(made_of(c), "go by the layer's number");
  c = tiny().config();
  c.max_length = 9;
  EXPECT_SAYS(made_of(c), "has a sample of 1");
  EXPECT_SAYS(made_of(c), "the model takes 9");
}

// Two evaluations a job: bursts hold several steps.
TEST_F(PipelineRun, LongBurstsAreTheStepsThatTheyHold) {
  sweep.early_exit.eval_fraction = 0.5;
  expect_same_on({2}, "long bursts");
}

// What a task's folder says is not chosen anew; on CPUs and in folders of before nothing is chosen.
TEST_F(PipelineRun, ChoosesOnce) {
  const auto in = [&](const std::string& said, const std::string& where) {
    fs::create_directories(where);
    if (!said.empty()) std::ofstream(where + "/parallel.json") << said;
    bool pipelined[2] = {};
    run_loopback(2, [&](Communicator& world) { pipelined[world.rank()] = run(world, where)->pipelined; });
    EXPECT_EQ(pipelined[0], pipelined[1]);
    return pipelined[0];
  };
  EXPECT_TRUE(in(ParallelChoice{true, 2, 1}.save(), folder()));
  EXPECT_FALSE(in(ParallelChoice{false, 1, 2}.save(), folder()));
  EXPECT_FALSE(in("", folder()));
  EXPECT_SAYS(said([&] { in("{}", folder()); }), "does not say how the task's ranks share its steps");
  // Nobody asked for one on these ranks.
  const std::string where = folder();
  fs::create_directories(where);
  std::ofstream(where + "/parallel.json") << ParallelChoice{true, 2, 1}.save();
  run_loopback(3, [&](Communicator& world) { EXPECT_FALSE(run(world, where)->pipelined); });
}

// What measures for the choice: alike on all ranks, and it leaves the sweep as it was.
TEST_F(PipelineRun, MeasuresBothWays) {
  sweep.parallel = "gather";
  const Result plain = on(2);
  const std::string where = folder();
  const Instructions data = sequences(false);
  std::vector<ParallelCosts> costs(2);
  run_loopback(2, [&](Communicator& world) {
    Executor executor(sweep, task, backbone_of(tiny(), true), data, world, where);
    costs[std::size_t(world.rank())] = *executor.parallel_costs();
    executor.run();
  });
  EXPECT_EQ(text_of(where + "/losses.jsonl"), plain.losses);
  const ParallelCosts& c = costs[0];
  EXPECT_EQ(c.ranks, 2);
  EXPECT_EQ(c.shape.packs, 8);
  EXPECT_EQ(c.steps, 1) << "jobs of both sizes are evaluated at every third and every second step, and their cuts";
  for (const double seconds : {c.gather, c.compute, c.pack, c.move}) EXPECT_GT(seconds, 0);
  EXPECT_EQ(c.compute, costs[1].compute);
  EXPECT_EQ(pipelined_seconds(c), pipelined_seconds(costs[1]));
}

}  // namespace
}  // namespace trireme::sweep

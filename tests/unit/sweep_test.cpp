// The sweep's decisions without a model: early exit against 56 curves of a Python reference
// (tests/reference/early_exit_cases.py), packing, the memory fit, and the search space of the YAML.
#include "data/rng.h"
#include "framework/metrics/progress.h"
#include "tests/max_difference.h"
#include "tests/unit/said.h"
#include "trainers/sweep/config.h"
#include "trainers/sweep/journal.h"
#include "trainers/sweep/live_table.h"
#include "trainers/sweep/pace.h"
#include "trainers/sweep/pack.h"
#include "trainers/sweep/packing.h"
#include "trainers/sweep/parallel.h"
#include "trainers/sweep/replay.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme::sweep {
namespace {

using nlohmann::json;
using test::said;
namespace fs = std::filesystem;

struct Sweep : testing::Test {
  fs::path dir = fs::path(testing::TempDir()) / ("sweep_" + std::to_string(getpid()));
  void SetUp() override { fs::create_directories(dir); }
  void TearDown() override { fs::remove_all(dir); }
  std::string file(const std::string& text) const {
    std::ofstream(dir / "f.jsonl") << text;
    return dir / "f.jsonl";
  }
};

json reference_cases() {
  std::ifstream in(std::string(std::getenv("TRIREME_SOURCE")) + "/tests/reference/early_exit_cases.json");
  return json::parse(in);
}

std::string text_of(const json& a_case) {
  std::string text = a_case["header"].dump() + "\n";
  for (const auto& line : a_case["lines"]) text += line.dump() + "\n";
  return text;
}

void expect_same(const json& got, const json& want, const std::string& name) {
  for (const char* key : {"job", "step", "decision", "rank"}) EXPECT_EQ(got[key], want[key]) << name << " " << key;
  for (const char* key : {"train_ema", "val_loss", "slope_train", "slope_val", "gap"}) {
    ASSERT_EQ(got[key].is_null(), want[key].is_null()) << name << " " << key << got << want;
    if (got[key].is_null()) continue;
    EXPECT_NEAR(got[key].get<double>(), want[key].get<double>(), 1e-12 * (1 + std::abs(want[key].get<double>())))
        << name << " " << key;
  }
}

TEST_F(Sweep, DecidesAsTheReference) {
  const json cases = reference_cases();
  ASSERT_GE(cases.size(), 40u);
  std::set<std::string> seen;
  for (const auto& c : cases) {
    const auto decisions = replay(file(text_of(c)), {});
    ASSERT_EQ(decisions.size(), c["decisions"].size()) << c["name"];
    for (std::size_t i = 0; i < decisions.size(); ++i) {
      expect_same(json::parse(decisions[i].json()), c["decisions"][i], c["name"]);
      seen.insert(decisions[i].decision);
    }
  }
  EXPECT_EQ(seen.size(), 4u);
}

// Saved after any evaluation and loaded again, the same follows, to the bit.
TEST_F(Sweep, GoesOnFromSavedState) {
  for (const auto& c : reference_cases()) {
    EarlyExitConfig config;
    const json& header = c["header"];
    if (header.contains("cut")) config.cut = header["cut"].get<std::string>();
    config.ema_alpha = header.value("ema_alpha", 0.1);
    config.warmup_ratio = header.value("warmup_ratio", 0.05);
    const auto total = header["total_steps"].get<std::map<std::string, std::int64_t>>();
    EarlyExit whole(config, total);
    auto broken = std::make_unique<EarlyExit>(config, total);
    for (const auto& line : c["lines"]) {
      if (!line.contains("val_loss") || line["val_loss"].is_null()) continue;
      const double v = line["val_loss"], e = 0.1 + v / 3;
      const auto a = whole.evaluate(line["job"], line["step"], &e, v),
                 b = broken->evaluate(line["job"], line["step"], &e, v);
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].json(), b[i].json());
      const std::string saved = broken->save();
      broken = std::make_unique<EarlyExit>(config, total);
      broken->load(saved);
      EXPECT_EQ(broken->save(), saved);
    }
  }
}

TEST_F(Sweep, RefusesBadFiles) {
  const std::string head = R"({"task":"t","total_steps":{"j":100}})";
  const auto says = [&](const std::string& text) { return said([&] { replay(file(text), {}); }); };
  EXPECT_SAYS(says(""), "f.jsonl:1: has no first line");
  EXPECT_SAYS(says("{\"task\":\n"), "f.jsonl:1: is no JSON");
  EXPECT_SAYS(says("{}"), "f.jsonl:1: the first line has no \"task\"");
  EXPECT_SAYS(says(R"({"task":"t","total_steps":{"j":0}})"), "f.jsonl:1: total_steps of job 'j'");
  EXPECT_SAYS(says(R"({"task":"t","total_steps":{"j":5},"tau_slop":1})"), "did you mean tau_slope");
  EXPECT_SAYS(says(R"({"task":"t","total_steps":{"j":5},"window":1})"), "window");
  EXPECT_SAYS(says(head + "\n[1]"), "f.jsonl:2: is no JSON object");
  EXPECT_SAYS(says(head + "\n\n" + R"({"job":"k","step":1,"val_loss":1})"), "f.jsonl:3: job 'k' is not in total_steps");
  EXPECT_SAYS(says(head + "\n" + R"({"job":"j","step":1})"), "neither \"train_loss\" nor \"val_loss\"");
  EXPECT_SAYS(says(head + "\n" + R"({"job":"j","step":101,"val_loss":1})"), "no whole number from 0 to 100");
  EXPECT_SAYS(says(head + "\n" + R"({"job":"j","step":1.5,"val_loss":1})"), "no whole number");
  EXPECT_SAYS(says(head + "\n" + R"({"job":"j","step":1,"val_loss":"x"})"), "neither a number nor null");
  const std::string twice = R"({"job":"j","step":1,"val_loss":1})";
  EXPECT_SAYS(says(head + "\n" + twice + "\n" + twice), "f.jsonl:3: step 1 of job 'j' does not come after");
  EXPECT_SAYS(says(std::string(100000, '[')), "is no JSON");
  EXPECT_SAYS(said([&] { replay(file(head), {"keep_ratio=2"}); }), "keep_ratio");
}

// Jobs come and go at random; at all times what runs fits, and who came in obeys the rule.
TEST_F(Sweep, BackfillsSameSizeFirst) {
  const MemoryLimit limit{{1000, 10}, 0.9 * 8000, 6};
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed, "trace");
    std::vector<Load> queue, running;
    for (int i = 0; i < 40; ++i) {
      const std::int64_t b = std::int64_t(1) << rng.below(5);
      queue.push_back({std::to_string(i), b, 16 * b, std::int64_t(1 + rng.below(8))});
    }
    std::optional<std::int64_t> freed;
    while (!queue.empty() || !running.empty()) {
      const auto started = admit(limit, queue, running, freed);
      const auto before = running;
      for (const auto i : started) running.push_back(queue[i]);
      ASSERT_LE(limit.model.bytes(running), limit.bytes);
      ASSERT_LE(std::int64_t(running.size()), limit.slots);
      if (freed && !started.empty() && queue[started[0]].batch_size != *freed) {
        for (const auto& q : queue)
          EXPECT_FALSE(q.batch_size == *freed && limit.allows(before, q)) << "a job of the freed size could have come";
      }
      for (std::size_t i = 1; !freed && i < started.size(); ++i)
        EXPECT_GE(queue[started[i - 1]].batch_size, queue[started[i]].batch_size);
      std::vector<Load> rest;
      for (std::size_t i = 0; i < queue.size(); ++i)
        if (std::find(started.begin(), started.end(), i) == started.end()) rest.push_back(queue[i]);
      queue = rest;
      for (const auto& q : queue) EXPECT_FALSE(limit.allows(running, q)) << "room is left";
      ASSERT_FALSE(running.empty());
      const auto out = std::ptrdiff_t(rng.below(running.size()));
      freed = running[std::size_t(out)].batch_size;
      running.erase(running.begin() + out);
    }
  }
}

Roster roster_on_its_way() {
  EarlyExitConfig config;
  config.keep_ratio = 0.5, config.warmup_ratio = 0.25;
  std::vector<Load> loads;
  for (int i = 0; i < 6; ++i) loads.push_back({"job" + std::to_string(i), 1, 16, 10});
  loads[5].parameters = 1000;  // is too large
  Roster roster(config, {{0, 0}, 5 * 18 * 10.0, 3}, 1, true, loads, {8, 8, 8, 8, 8, 8});
  (void)roster.plan();  // three run
  (void)roster.hear({0, 2, 2.5, 2.25});
  (void)roster.hear({1, 2, std::nan(""), 1});
  (void)roster.plan();  // the first makes room
  return roster;
}

// The last that the cut waited for does not fit any more when the sweep goes on: that makes the cut.
TEST_F(Sweep, ARefusedJobMakesTheCut) {
  EarlyExitConfig config;
  config.keep_ratio = 0.5, config.warmup_ratio = 0.25;
  const std::vector<Load> loads = {{"a", 1, 16, 10}, {"b", 1, 16, 10}, {"large", 1, 16, 1000}};
  const auto roster = [&](double bytes) { return Roster(config, {{0, 0}, bytes, 2}, 1, true, loads, {8, 8, 8}); };
  Roster before = roster(1e9);
  (void)before.plan();  // `large` waits for a place
  (void)before.hear({0, 2, 2.5, 2.25});
  (void)before.hear({1, 2, 2.5, 2.5});
  EXPECT_TRUE(roster(1e9).refuse().empty());
  Roster after = roster(1000);
  EXPECT_EQ(after.too_large().size(), 1u);
  after.load(before.save());
  EXPECT_EQ(after.jobs()[2].phase, Roster::Phase::queued);
  std::vector<std::string> told, replayed;
  for (const auto& d : after.refuse()) told.push_back(d.job + " " + d.decision);
  EXPECT_EQ(told, (std::vector<std::string>{"large too_large", "a kept", "b underperforming"}));
  using enum Roster::Phase;
  for (const auto& [job, phase] : {std::pair(0, running), {1, exited}, {2, exited}})
    EXPECT_EQ(after.jobs()[std::size_t(job)].phase, phase) << job;
  EXPECT_TRUE(after.refuse().empty());
  // Likewise of a file of losses.
  const std::string lines =
      R"({"task":"t","total_steps":{"a":8,"b":8,"large":8},"keep_ratio":0.5,"warmup_ratio":0.25}
{"job":"a","step":2,"val_loss":2.25}
{"job":"b","step":2,"val_loss":2.5}
)";
  const std::string refused = R"(","step":0,"too_large":true})";
  for (const auto& d : replay(file(lines + R"({"job":"large)" + refused), {}))
    replayed.push_back(d.job + " " + d.decision);
  EXPECT_EQ(replayed, told);
  EXPECT_SAYS(said([&] { replay(file(lines + R"({"job":"a)" + refused), {}); }), "job 'a' has begun, and is too large");
  const std::string twice = lines + R"({"job":"large)" + refused + "\n" + R"({"job":"large)" + refused;
  EXPECT_SAYS(said([&] { replay(file(twice), {}); }), ":5: job 'large' has ended, and is too large again");
  const std::string listed = R"({"task":"t","total_steps":{"a":8,"b":8},"too_large":["a","a"]})";
  EXPECT_SAYS(said([&] { replay(file(listed), {}); }), ":1: job 'a' has ended, and is too large again");
}

// What stands on a terminal while a task runs.
TEST_F(Sweep, ATableHasALineForEachJob) {
  const Roster roster = roster_on_its_way();
  const auto lines = live_table("task: some", roster, 100, 20);
  const std::vector<std::string> all = {"task: some",
                                        "job   state                    step     train       val      best",
                                        "job2  running                   0/8         -         -         -",
                                        "job3  running                   0/8         -         -         -",
                                        "job4  running                   0/8         -         -         -",
                                        "job0  parked                    2/8    2.5000    2.2500    2.2500 <- best",
                                        "job1  diverging                 2/8         -    1.0000    1.0000",
                                        "job5  too_large                 0/8         -         -         -"};
  EXPECT_EQ(lines, all);
  auto some = std::vector<std::string>(all.begin(), all.begin() + 5);
  some.push_back("... and 3 more");
  EXPECT_EQ(live_table("task: some", roster, 100, 6), some);
  for (const auto& line : live_table("task: some", roster, 30, 20)) EXPECT_LE(line.size(), 29u) << line;
  EXPECT_EQ(live_table("task: some", roster, 5, 5), std::vector<std::string>{"task"});
  testing::internal::CaptureStderr();
  {
    LiveLines live;
    live.draw(all), live.draw(live_table("task: some", roster, 100, 20, 450));
  }
  const std::string drawn = testing::internal::GetCapturedStderr();
  EXPECT_SAYS(drawn, "... and 3 more");
  EXPECT_LE(drawn.size() - drawn.rfind('\r'), 450u);
  EXPECT_EQ(live_table("task: some", roster, 100, 20, 300), std::vector<std::string>{"task: some"});
}

// Whoever leads is told, however little room there is.
TEST_F(Sweep, TheHeadNamesTheLeader) {
  const auto home = std::filesystem::path(testing::TempDir()) / ("sweep_head_" + std::to_string(getpid()));
  std::filesystem::create_directories(home);
  Journal journal(home, "t", "{}");
  setenv("TRIREME_TERMINAL", "40", 1);
  testing::internal::CaptureStderr();
  journal.progress(roster_on_its_way(), false);
  const std::string drawn = testing::internal::GetCapturedStderr();
  unsetenv("TRIREME_TERMINAL");
  std::filesystem::remove_all(home);
  EXPECT_SAYS(drawn, "t: best 2.2500 job0, ");
  EXPECT_EQ(drawn.find("\x1b"
                       "E"),
            std::string::npos)
      << "rows are not known";
}

TEST_F(Sweep, LinesAreDrawnInPlace) {
  testing::internal::CaptureStderr();
  {
    LiveLines live;
    live.clear();
    live.draw({"a"}), live.draw({"b", "c"}), live.draw({"d"}), live.clear();
    live.draw({"e", "f"});
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "\r\x1b[Ja\x1b[K"
            "\r\x1b[Jb\x1b"
            "Ec\x1b[K"
            "\r\x1b[1A\x1b[Jd\x1b[K"
            "\r\x1b[J\x1b[K"
            "\r\x1b[Je\x1b"
            "Ef\x1b[K\n");
}

// Dropout's masks follow from a job's own step: the same one at every step would be no dropout.
TEST_F(Sweep, PacksKnowTheStep) {
  const Example e{{1, 2, 3}, {0, 1, 1}};
  Pack pack;
  pack.begin_job(0, 7);
  pack.add(e);
  pack.begin_job(2, 9);
  pack.add(e), pack.add(e);
  ASSERT_EQ(pack.rows().size(), 2u);
  EXPECT_EQ(pack.rows()[0].step, 7);
  EXPECT_EQ(pack.rows()[1].step, 9);
  EXPECT_EQ(pack.rows()[1].first, 3);
  EXPECT_EQ(pack.rows()[1].last, 9);
  EXPECT_EQ(pack.rows()[1].job_row, 0);
}

TEST_F(Sweep, FitsMemory) {
  std::vector<Profiled> profiles;
  for (const std::int64_t jobs : {1, 2, 4, 8})
    for (const std::int64_t b : {1, 4, 16})
      profiles.push_back(
          {jobs * b * 512, jobs * 1000, 3e9 + 2e5 * double(jobs * b * 512) + 18.0 * double(jobs) * 1000});
  const MemoryModel model = fit_memory(profiles);
  EXPECT_NEAR(model.fixed, 3e9, 1e3);
  EXPECT_NEAR(model.per_token, 2e5, 1e-2);
  EXPECT_THROW(fit_memory(std::vector<Profiled>{{512, 1, 1}, {512, 2, 2}}), Error);
}

// The device says more than the first forecast: what is fitted on the way keeps the profile within the limit.
TEST_F(Sweep, ProfilesUpToTheLimit) {
  std::vector<Load> jobs;
  for (int i = 0; i < 20; ++i) jobs.push_back({std::to_string(i), 1 + i % 3, 100 * (1 + i % 3), 1000});
  const auto bytes = [](std::int64_t tokens, std::int64_t parameters) {
    return 5e6 + 4e3 * double(tokens) + 18.0 * double(parameters);
  };
  MemoryLimit limit{{1e6, 1e3}, 9e6, 50};
  std::vector<std::size_t> counts;
  const auto step = [&](std::size_t n) {
    counts.push_back(n);
    Profiled p;
    for (const auto i : admission_order(jobs, {})) {
      if (n-- == 0) break;
      p.tokens += jobs[i].tokens, p.parameters += jobs[i].parameters;
    }
    p.bytes = bytes(p.tokens, p.parameters), p.seconds = 0.01 + 1e-5 * double(p.tokens);
    EXPECT_LE(p.bytes, limit.bytes);
    return p;
  };
  const auto profiles = profile_steps(limit, jobs, step);
  EXPECT_EQ(counts, (std::vector<std::size_t>{1, 2}));  // 4 would take 9.9e6
  EXPECT_NEAR(fit_memory(profiles).per_token, 4e3, 1e-3);
  limit.bytes = 1e9;
  counts.clear();
  MemoryLimit tight = limit;
  tight.bytes = 1e6 + 1e3 * 250 + 18 * 1000;  // of those with three samples none fits
  std::vector<std::size_t> fitting;
  for (const std::size_t i : fitting_order(tight, jobs)) fitting.push_back(i % 3);
  EXPECT_EQ(fitting, (std::vector<std::size_t>{1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(profile_steps(tight, jobs,
                          [](std::size_t n) {
                            return Profiled{200 * std::int64_t(n), 1000, 0, 1};
                          })
                .size(),
            1u);
  tight.bytes = 1;
  EXPECT_TRUE(profile_steps(tight, jobs, [](std::size_t) { return Profiled{}; }).empty());
  const auto all = profile_steps(limit, jobs, step);
  EXPECT_EQ(counts, (std::vector<std::size_t>{1, 2, 4, 8, 16, 20}));
  EXPECT_NEAR(seconds_of(all, 1500), 0.025, 1e-9);
  EXPECT_NEAR(seconds_of(all, 1), all[0].seconds, 1e-12);
  EXPECT_NEAR(seconds_of(all, 9000), 0.1, 1e-9);
}

// Against a clock by hand: two slots on each of two ranks.
TEST_F(Sweep, ForecastsDurations) {
  std::vector<Load> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back({std::to_string(i), 1, 100, 1000});
  const std::vector<std::int64_t> steps{10, 20, 30, 40, 50};
  const std::vector<double> tokens{100, 100, 100, 100, 100};
  const std::vector<Profiled> known{{100, 0, 0, 1.0}, {200, 0, 0, 1.5}};
  const auto profiles = [&](double n) { return seconds_of(known, n); };
  const MemoryLimit limit{{0, 1}, 1e9, 2};
  // 10 ticks of two on both ranks, when 0 ends and 4 comes (first rank); 1 and 3 are on the second: 1 ends at 20, 2 at
  // 30, 3 at 40, 4 at 60.
  EXPECT_NEAR(forecast_seconds(limit, 2, jobs, steps, tokens, profiles), 30 * 1.5 + 30 * 1.0, 1e-9);
  EXPECT_NEAR(forecast_seconds({{0, 1}, 1e9, 1}, 1, jobs, steps, tokens, profiles), 150, 1e-9);
  EXPECT_EQ(forecast_seconds(limit, 2, jobs, std::vector<std::int64_t>(5, 0), tokens, profiles), 0);
}

// Jobs of four batch sizes, of which the large ones end first, on a clock where a step costs a constant and a time a
// token, and its first three with other jobs ten times that; a profile says that a step takes 17 ms.
TEST_F(Sweep, ForecastsByWhatWasSeen) {
  std::vector<Load> jobs;
  std::vector<std::int64_t> left;
  std::vector<double> tokens;
  for (int i = 0; i < 12; ++i) {
    const std::int64_t batch = 1 << (i % 4);
    jobs.push_back({std::to_string(i), batch, 100 * batch, 1000});
    left.push_back(4000 / batch), tokens.push_back(100 * double(batch));
  }
  const MemoryLimit limit{{0, 1}, 1e9, 12};
  const std::vector<Profiled> profiles{{100, 0, 0, 0.017}, {4500, 0, 0, 0.021}};
  // The worst forecast of what is left, while a fifth of a second or more is, once the clock shows `from`.
  const auto worst = [&](double per_pass, double per_token, double from, double slower, double slower_from) {
    Pace pace;
    Rng noise(3, "noise");
    double clock = 0;
    std::vector<std::pair<double, double>> said;  // when, and the end
    auto rest = left;
    std::ptrdiff_t running = 0;
    while (*std::max_element(rest.begin(), rest.end()) > 0) {
      const auto now = std::count_if(rest.begin(), rest.end(), [](auto n) { return n > 0; });
      std::int64_t warm = now == running ? 0 : Pace::warm_passes, passes = 0;
      running = now;
      double window = 0, window_tokens = 0;
      for (int k = 0; k < 10; ++k) {
        double all = 0;
        for (std::size_t i = 0; i < rest.size(); ++i) all += rest[i]-- > 0 ? tokens[i] : 0;
        const double took = (per_pass + per_token * all) * (clock > slower_from ? slower : 1) * (warm > 0 ? 10 : 1) *
                            (0.97 + 0.06 * noise.uniform());
        clock += took;
        if (warm-- <= 0) ++passes, window += took, window_tokens += all;
      }
      for (auto& n : rest) n = std::max<std::int64_t>(n, 0);
      pace.add(passes, window_tokens, window);
      said.emplace_back(clock, clock + forecast_seconds(limit, 1, jobs, rest, tokens,
                                                        [&](double n) { return pace.step_seconds(n, profiles); }));
    }
    double most = 0;
    for (const auto& [when, end] : said)
      if (clock - when > 0.5 && when > from) most = test::nan_max(most, std::abs(end - clock) / (clock - when));
    return most;
  };
  EXPECT_LT(worst(0.015, 1e-6, 0.6, 1, 0), 0.1);      // as the profile said
  EXPECT_LT(worst(0.004, 0.235e-6, 0.2, 1, 0), 0.1);  // of its shape, faster: from the first steps on
  EXPECT_LT(worst(0.004, 1e-6, 4.6, 1, 0), 0.1);      // of another shape: once jobs of one size have left
  // Another task runs beside since the seventh second: what steps of other sizes took before says less.
  EXPECT_LT(worst(0.004, 1e-6, 8, 1.5, 7), 0.15);
  EXPECT_LT(worst(0.004, 1e-6, 16, 1.5, 7), 0.1);
  EXPECT_EQ(Pace().step_seconds(100, {}), 0);
  Pace one;
  one.add(10, 1000, 1);
  EXPECT_NEAR(one.step_seconds(200, {}), 0.2, 1e-12);
}

const char* const yaml = R"(recipe: lora_sweep
model: backbone
search: {lr: [1e-4, 3e-4], rank: [8, 16], batch_size: [1, 2, 4], alpha: 2r}
early_exit: {keep_ratio: 0.5}
tasks:
  easy: {level: 1}
  hard:
    level: 3
    search: {random: 5, alpha: 16}
)";

TEST_F(Sweep, ReadsTheSearchSpace) {
  const SweepConfig c = read_sweep(file(yaml), {"tasks.easy.held_out=9"});
  ASSERT_EQ(c.tasks.size(), 2u);
  EXPECT_EQ(c.early_exit.keep_ratio, 0.5);
  EXPECT_EQ(c.tasks[0].data.held_out, 9);
  EXPECT_EQ(c.tasks[1].data.level, 3);
  EXPECT_EQ(c.tasks[1].model, "backbone");
  const auto grid = candidates(c.tasks[0].search, 1, "");
  ASSERT_EQ(grid.size(), 12u);
  EXPECT_EQ(grid[0].job, "00-lr1e-4-r8-b1");
  EXPECT_EQ(grid[11].job, "11-lr3e-4-r16-b4");
  EXPECT_EQ(grid[11].alpha, 32);
  std::set<std::tuple<double, std::int64_t, std::int64_t>> all;
  for (const auto& j : grid) all.insert({j.lr, j.rank, j.batch_size});
  EXPECT_EQ(all.size(), 12u);
  const auto drawn = candidates(c.tasks[1].search, 1, "");
  ASSERT_EQ(drawn.size(), 5u);
  EXPECT_EQ(drawn[0].alpha, 16);
  std::set<std::string> names;
  for (const auto& j : drawn) names.insert(j.job.substr(j.job.find('-')));
  EXPECT_EQ(names.size(), 5u);
  EXPECT_NE(candidates(c.tasks[1].search, 2, "")[0].job + candidates(c.tasks[1].search, 2, "")[4].job,
            drawn[0].job + drawn[4].job);
}

TEST_F(Sweep, ReadsWhichModulesAreAdapted) {
  const std::string text = std::string(yaml) +
                           "lora:\n  targets: '.*\\.(q|v)_proj'\n  exclude: [layers.0.self_attn.q_proj]\n"
                           "  rank_pattern: {v_proj: 4, '.*layers\\.1\\..*': 2}\n  alpha_pattern: {v_proj: 0.5}\n"
                           "  init: gaussian\n";
  const SweepConfig c = read_sweep(file(text), {"lora.rank_pattern.a=3"});
  for (const SweepConfig& s : {c, begun_sweep(c.settings, "saved")}) {
    EXPECT_EQ(s.lora.expression, ".*\\.(q|v)_proj");
    EXPECT_EQ(s.lora.exclude, std::vector<std::string>{"layers.0.self_attn.q_proj"});
    EXPECT_EQ(s.lora.rank_pattern,
              (std::vector<std::pair<std::string, std::int64_t>>{{"v_proj", 4}, {".*layers\\.1\\..*", 2}, {"a", 3}}));
    EXPECT_EQ(s.lora.alpha_pattern, (std::vector<std::pair<std::string, double>>{{"v_proj", 0.5}}));
    EXPECT_EQ(s.lora.init, "gaussian");
    EXPECT_EQ(s.settings, c.settings);
  }
  const SweepConfig out = read_sweep(file(yaml), {"lora.exclude='.*[.]0[.].*'"});
  EXPECT_EQ(out.lora.excluded, ".*[.]0[.].*");
  EXPECT_EQ(begun_sweep(out.settings, "saved").settings, out.settings);
  const SweepConfig list = read_sweep(file(yaml), {"lora.targets=[all-linear]"});
  EXPECT_FALSE(list.lora.expression);
  EXPECT_EQ(list.lora.targets, std::vector<std::string>{"all-linear"});
  const auto says = [&](const std::string& key) { return said([&] { read_sweep(file(yaml), {key}); }); };
  EXPECT_SAYS(says("lora.targets=''"), "lora.targets: no module is named");
  EXPECT_SAYS(says("lora.rank_pattern={v_proj: 200}"), "lora.rank_pattern.v_proj: '200' is out of range");
  EXPECT_SAYS(says("lora.rank_pattern=[v_proj]"), "lora.rank_pattern");
  EXPECT_SAYS(says("lora.init=pissa"), "default, gaussian");
}

TEST_F(Sweep, NamesWhatIsWrongInTheYaml) {
  const auto says = [&](std::vector<std::string> keys, const std::string& text = yaml) {
    return said([&] { read_sweep(file(text), keys); });
  };
  EXPECT_EQ(says({}), "nothing");
  EXPECT_SAYS(says({"search.ranks=4"}), "did you mean rank");
  EXPECT_SAYS(says({}, "recipe: lora_sweep\nmodel: m\ntasks:\n  a: {levle: 2}\n"), "f.jsonl:4");
  EXPECT_SAYS(says({"search.alpha=2x"}), "'2x' is no alpha");
  EXPECT_SAYS(says({"search.rank=[0]"}), "ranks are 1 to 128");
  EXPECT_SAYS(says({}, "recipe: lora_sweep\nmodel: m\n"), "no task is named");
  EXPECT_SAYS(says({}, "recipe: lora_sweep\ntasks: {a: {level: 1}}\n"), "has no model");
  EXPECT_SAYS(says({"execution.arm=both"}), "grouped");
  for (const char* bare : {"lora.dropout=0.1", "train.accumulate=2", "tasks.hard.objective=dpo"})
    EXPECT_SAYS(says({"train.pad=longest", "tasks.easy.objective=dpo", bare}), "no step is padded");
  EXPECT_EQ(says({"train.pad=longest", "tasks.easy.objective=dpo"}), "nothing") << "hard's steps are";
  const auto ignored = [&](const std::string& more, const std::vector<std::string>& keys = {}) {
    const std::string text = "recipe: lora_sweep\nmodel: m\ntasks:\n  a: {data: chats.jsonl" + more + "}\n";
    return said([&] { check_ignored(read_sweep(file(text), keys)); });
  };
  EXPECT_EQ(ignored(""), "nothing");
  EXPECT_SAYS(ignored(", held_out: 3"), "tasks.a: held_out: of data: arithmetic alone, and this task's is chats.jsonl");
  EXPECT_SAYS(ignored("", {"tasks.a.level=2"}), "tasks.a: level:");
  EXPECT_EQ(ignored(", train: 9", {"tasks.a.data=arithmetic"}), "nothing");
  EXPECT_EQ(said([&] {
              check_ignored(read_sweep(
                  file(read_sweep(file(yaml), {"tasks.hard.data=x.jsonl", "tasks.hard.level=1"}).settings), {}));
            }),
            "nothing")
      << "a resolved file has all keys";
  const SweepConfig c = read_sweep(file(yaml), {});
  SearchConfig search = c.search;
  search.random = 13;
  EXPECT_SAYS(said([&] { candidates(search, 1, "s.yaml:3"); }), "s.yaml:3: search.random asks for 13 of 12");
}

TEST_F(Sweep, SettingsFromBeforeKeysGoOnWithout) {
  const SweepConfig sweep = read_sweep(file(yaml), {});
  const std::string now = sweep.settings;
  EXPECT_EQ(begun_sweep(now, "saved").settings, now);
  EXPECT_TRUE(later_keys(now).empty());
  std::string old = now;
  const std::string weights = "weights: file\n";
  ASSERT_NE(old.find(weights), old.npos);
  old.erase(old.find(weights), weights.size());
  EXPECT_EQ(begun_sweep(old, "saved").settings, now);
  using Keys = std::vector<std::string>;
  Keys later;
  for (const auto& [line, was] : std::vector<std::pair<std::string, std::string>>{
           {"  parallel: auto\n", "execution.parallel=gather"}, {"  pad: auto\n", "train.pad=off"}}) {
    ASSERT_NE(old.find(line), old.npos);
    old.erase(old.find(line), line.size());
    later.insert(later.begin(), was);
    EXPECT_EQ(later_keys(old), later);
    EXPECT_EQ(later_keys(old, &sweep), later);
    EXPECT_EQ(begun_sweep(old, "saved").settings, read_sweep(file(yaml), later).settings);
  }
  // `test` was no key of files, and was said to be 200 there.
  const std::string files = "recipe: lora_sweep\nmodel: m\ntasks:\n  a: {data: a.jsonl}\n  b: {test: 9}\n";
  const std::string read = read_sweep(file(files), {}).settings;
  std::string before = read;
  const auto replace = [&](const std::string& what, const std::string& by) {
    const std::size_t at = before.find(what);
    ASSERT_NE(at, before.npos) << what;
    before.replace(at, what.size(), by);
  };
  replace("    test: 0\n    test_file: ''\n", "    test: 200\n");
  replace("    test: 9\n    test_file: ''\n", "    test: 9\n");
  EXPECT_EQ(begun_sweep(before, "saved").settings, read);
  const SweepConfig texts = read_sweep(file(yaml), {"tasks.easy.data=[a.txt, b.txt]", "tasks.hard.data=c.txt"});
  EXPECT_EQ(texts.tasks[0].data.texts, (std::vector<std::string>{"a.txt", "b.txt"}));
  EXPECT_EQ(texts.tasks[0].data.test, 0);
  EXPECT_EQ(texts.tasks[1].data.data, "c.txt");
  EXPECT_EQ(begun_sweep(texts.settings, "saved").settings, texts.settings);
  const SweepConfig asked = read_sweep(file(yaml), {"execution.parallel=pipeline"});
  EXPECT_EQ(later_keys(old, &asked), Keys{"train.pad=off"}) << "what is asked for is no continuation";
}

// Ticks of a pipeline: of six packs on four ranks a tick of each, the last one's way up, back and its sum's way up.
TEST_F(Sweep, CountsTicksOfAPipeline) {
  EXPECT_EQ(pipeline_period({8, 1}, 4), 8);
  EXPECT_EQ(pipeline_period({3, 1}, 4), 7);
  EXPECT_EQ(pipeline_period({4, 4}, 2), 6);
  EXPECT_EQ(pipeline_ticks({8, 1}, 4, 1), 8 + 8);
  EXPECT_EQ(pipeline_ticks({8, 1}, 4, 10), 80 + 8);
  EXPECT_EQ(pipeline_ticks({1, 1}, 2, 3), 2 * 3 + 1 + 2);
  EXPECT_EQ(pipeline_ticks({8, 1}, 4, 0), 0);
}

// 70 B on four H200, eight jobs: a step gathered took 0.85 (its gathers 0.867), 0.973 and 1.528 s at batch 1, 2 and 4,
// as a pipeline 0.494 and 0.823.
TEST_F(Sweep, ChoosesThePipelineWhereGathersAreSlow) {
  const auto at = [](double gather, double compute, double pack, std::int64_t steps = 20, double move = 0.1) {
    return ParallelCosts{4, {8, 1}, gather, compute, pack, move, steps};
  };
  const double pack_of_one = 0.494 / 2, pack_of_two = 0.823 / 2, pack_of_four = 0.79;
  const ParallelChoice one = choose_parallel(at(0.867, 0.4, pack_of_one));
  EXPECT_TRUE(one.pipeline);
  EXPECT_NEAR(one.gathered, 0.85, 0.1);
  EXPECT_NEAR(one.pipelined, 0.494, 0.04);
  const ParallelChoice two = choose_parallel(at(0.856, 0.737, pack_of_two));
  EXPECT_TRUE(two.pipeline);
  EXPECT_NEAR(two.gathered, 0.973, 0.05);
  EXPECT_NEAR(two.pipelined, 0.823, 0.06);
  const ParallelChoice four = choose_parallel(at(0.885, 1.422, pack_of_four));
  EXPECT_FALSE(four.pipeline);
  EXPECT_NEAR(four.gathered, 1.528, 0.05);
  EXPECT_FALSE(choose_parallel(at(0.856, 0.737, pack_of_two, 2)).pipeline) << "bursts of two steps fill and empty it";
  EXPECT_FALSE(choose_parallel({4, {2, 1}, 0.4, 0.2, pack_of_one, 0.1, 20}).pipeline) << "ranks wait for two jobs";
  EXPECT_EQ(ParallelChoice::load(one.save(), "f").pipelined, one.pipelined);
}

}  // namespace
}  // namespace trireme::sweep

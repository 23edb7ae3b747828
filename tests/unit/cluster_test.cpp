// The inter-task scheduler: plans against brute force, replanning on a virtual clock, charts, the journal, the inbox
// and the live driver with tasks that only count.
#include "comm/local/loopback.h"
#include "data/rng.h"
#include "tests/fake_task.h"
#include "trainers/sweep/cluster/inbox.h"
#include "trainers/sweep/cluster/journal.h"
#include "trainers/sweep/cluster/lists.h"
#include "trainers/sweep/cluster/recording.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

namespace trireme::cluster {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("trireme-cluster-" + std::to_string(getpid()));
  Folder() { fs::remove_all(path), fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

Problem random_problem(int tasks, int gpus, std::uint64_t seed, bool whole = false, int running = 0) {
  Rng rng(seed, "problem", std::uint64_t(tasks));
  Problem p{gpus, {}, {}};
  for (int i = 0; i < tasks; ++i) {
    const int g = 1 << rng.below(3);
    p.waiting.push_back({"t" + std::to_string(i), g, whole ? 1 + double(rng.below(9)) : 1 + 9 * rng.uniform()});
  }
  int left = gpus;
  for (int i = 0; i < running && left > 1; ++i) {
    const int g = 1 + int(rng.below(std::uint64_t(left - 1)));
    p.running.push_back({g, 6 * rng.uniform() - 0.5});
    left -= g;
  }
  return p;
}

// Every order of the tasks, each put at the earliest moment where its GPUs are free throughout: all active schedules.
double brute_force(const Problem& p) {
  struct Interval {
    double start, end;
    int gpus;
  };
  std::vector<std::size_t> order(p.waiting.size());
  std::iota(order.begin(), order.end(), 0);
  double best = 1e300;
  do {
    std::vector<Interval> placed;
    double makespan = 0;
    for (const auto& r : p.running)
      if (r.end > 0) placed.push_back({0, r.end, r.gpus}), makespan = std::max(makespan, r.end);
    for (const std::size_t i : order) {
      std::vector<double> moments = {0};
      for (const auto& q : placed) moments.push_back(q.end);
      std::sort(moments.begin(), moments.end());
      for (const double at : moments) {
        const double end = at + p.waiting[i].seconds;
        bool fits = true;
        std::vector<double> starts = {at};  // demand only rises where something starts
        for (const auto& q : placed)
          if (q.start > at && q.start < end) starts.push_back(q.start);
        for (const double t : starts) {
          int busy = p.waiting[i].gpus;
          for (const auto& q : placed)
            if (q.start <= t && t < q.end) busy += q.gpus;
          fits &= busy <= p.gpus;
        }
        if (!fits) continue;
        placed.push_back({at, end, p.waiting[i].gpus});
        makespan = std::max(makespan, end);
        break;
      }
    }
    best = std::min(best, makespan);
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

TEST(Cluster, EqualsBruteForce) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  const int seeds = 6;
#else
  const int seeds = 60;
#endif
  for (int seed = 0; seed < seeds; ++seed)
    for (int tasks : {1, 3, 5, 6})
      for (int running : {0, 2}) {
        const Problem p = random_problem(tasks, seed % 3 ? 8 : 5, std::uint64_t(seed), seed % 2, running);
        const Plan found = plan(p, Policy::search, {});
        check(p, found);
        EXPECT_TRUE(found.optimal);
        EXPECT_NEAR(found.makespan, brute_force(p), 1e-6) << tasks << " tasks, seed " << seed;
        EXPECT_LE(found.bound, found.makespan);
      }
}

TEST(Cluster, StandInOfFigure5) {
  const Problem p{4, {{"a", 1, 1}, {"b", 1, 1}, {"c", 1, 3}, {"d", 2, 5}}, {}};
  EXPECT_EQ(plan(p, Policy::shortest, {}).makespan, 6);
  const Plan best = plan(p, Policy::search, {});
  EXPECT_EQ(best.makespan, 5);
  EXPECT_TRUE(best.optimal);
}

// Longer runs of the same and what they took: `trireme bench sweep_cluster`.
TEST(Cluster, ElevenTasksAreProvedFourteenNearlyAndNothingIsAboveTheLists) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "hours of a sanitizer's time";
#endif
  for (int tasks : {11, 14})
    for (int seed = 0; seed < (tasks == 11 ? 30 : 3); ++seed) {
      const Problem p = random_problem(tasks, 8, std::uint64_t(seed));
      const double begin = cpu_seconds();
      const Plan found = plan(p, Policy::search, {2});
      const double took = cpu_seconds() - begin;
      check(p, found);
      EXPECT_LE(took, tasks == 11 ? 1 : 2.2) << tasks << " tasks, seed " << seed;
      EXPECT_LE(found.gap(), tasks == 11 ? 0 : 0.02) << tasks << " tasks, seed " << seed;
      for (const Policy other : policies()) {
        if (other == Policy::search) continue;
        EXPECT_LE(found.makespan, plan(p, other, {}).makespan);  // which has more time
      }
    }
}

TEST(Cluster, LimitsHold) {
  const Problem big = random_problem(40, 8, 1);
  const Plan few = plan(big, Policy::search, {60, 500});
  EXPECT_LE(few.nodes, 500);
  EXPECT_LE(few.makespan, plan(big, Policy::list, {}).makespan);
  EXPECT_GT(few.bound, 0);
  check(big, few);
  const Problem huge = random_problem(200, 64, 1);  // more than are searched: the lists
  const Plan lists = plan(huge, Policy::search, {});
  check(huge, lists);
  EXPECT_LE(lists.gap(), 0.05);
  const Plan none = plan({4, {}, {{2, 3.5}}}, Policy::search, {});
  EXPECT_EQ(none.makespan, 3.5);
}

TEST(Cluster, FifoIsStrict) {
  const Problem p{2, {{"a", 1, 4}, {"b", 2, 1}, {"c", 1, 1}}, {}};
  EXPECT_EQ(plan(p, Policy::fifo, {}).start, (std::vector<double>{0, 4, 5}));
  EXPECT_EQ(plan(p, Policy::fifo_backfill, {}).start, (std::vector<double>{0, 4, 0}));
}

TEST(Cluster, GpusAreNeighbours) {
  Gpus gpus(16, 8);
  EXPECT_EQ(gpus.take(2), (std::vector<int>{0, 1}));
  EXPECT_EQ(gpus.take(4), (std::vector<int>{2, 3, 4, 5})) << "the fullest host with room";
  EXPECT_EQ(gpus.take(4), (std::vector<int>{8, 9, 10, 11}));
  gpus.release({2, 3, 4, 5});
  gpus.claim({3});
  EXPECT_EQ(gpus.take(1), (std::vector<int>{12})) << "the host with fewer free";
  EXPECT_EQ(gpus.take(4), (std::vector<int>{4, 5, 6, 7})) << "the shortest run";
  EXPECT_EQ(gpus.free(), 4);
  EXPECT_THROW(gpus.take(5), Error);
  EXPECT_EQ(gpus.take(4), (std::vector<int>{2, 13, 14, 15}));
}

std::vector<Recorded> recorded(int tasks, std::uint64_t seed, double warmup, double keep, bool repack) {
  std::vector<Recorded> all;
  for (const auto& t : random_problem(tasks, 8, seed).waiting) {
    Recorded r{t, 0, warmup * t.seconds, keep * (1 - warmup) * t.seconds, t.gpus};
    if (repack) r.gpus_after = std::max(1, t.gpus / 4), r.after_cut *= t.gpus / double(r.gpus_after);
    if (keep == 1) r.before_cut = t.seconds, r.after_cut = 0;
    all.push_back(r);
  }
  return all;
}

TEST(Simulator, ReadsFigure12) {
  // Every task takes 0.05 + 0.25 * 0.95 of its time: told so, any policy does as well.
  for (const Policy policy : policies()) {
    Settings s{8, 8, policy, {2, 100000}};
    auto exits = recorded(11, 3, 0.05, 0.25, false);
    for (auto& r : exits) r.task.seconds = planned_seconds(r.task.seconds, Durations::expected, 0.05, 0.25);
    const Trace all = simulate(s, recorded(11, 3, 0.05, 1, false)), cut = simulate(s, exits);
    test::expect_apart(cut.actual);
    EXPECT_NEAR(all.makespan / cut.makespan, 1 / 0.2875, policy == Policy::search ? 0.05 : 1e-9) << name(policy);
  }
}

TEST(Simulator, ReplansOnEveryEvent) {
  // The planner is told the worst case: when the first is cut, the wide one starts at once.
  std::vector<Recorded> tasks = {
      {{"long", 2, 10}, 0, 1, 2, 1}, {{"wide", 4, 3}, 0, 3, 0, 0}, {{"late", 1, 1}, 2, 1, 0, 0}};
  const Trace t = simulate({4, 8, Policy::search, {}}, tasks);
  test::expect_apart(t.actual);
  ASSERT_EQ(t.actual.size(), 4u);
  EXPECT_EQ(t.plan.size(), 3u) << "made when `late` had arrived";
  std::map<std::string, double> ends;
  for (const auto& b : t.actual) ends[b.task] = b.end;
  if (ends["wide"] == 3) {
    EXPECT_EQ(t.makespan, 6);
  } else {
    EXPECT_EQ(ends["long"], 3);
    EXPECT_EQ(ends["late"], 3) << "on a GPU that the cut freed";
    EXPECT_EQ(ends["wide"], 6);
  }
  EXPECT_GE(t.plans, 4);
}

// A task that measures itself moves what waits for it, and its likes are told anew.
TEST(Scheduler, HearsWhatWasMeasured) {
  Scheduler s({2, 8, Policy::search, {}});
  s.arrive({"first", 2, 10});
  s.arrive({"next", 2, 10});
  ASSERT_EQ(s.due(0).size(), 1u);
  EXPECT_DOUBLE_EQ(s.last_plan().makespan, 20);
  s.measured("first", 1, 4);
  s.retime("next", 6);
  EXPECT_TRUE(s.due(1).empty());
  EXPECT_DOUBLE_EQ(s.last_plan().makespan, 10);
  EXPECT_DOUBLE_EQ(s.planned().back().end, 11);
}

// On half its GPUs what remains takes twice as long: worth it only where another task waits for them.
TEST(Simulator, ShrinksWhereThePlanGains) {
  const Recorded cut{{"cut", 2, 10}, 0, 1, 4, 1, 2};
  const Trace alone = simulate({2, 8, Policy::search, {}}, {cut});
  EXPECT_EQ(alone.makespan, 3) << "keeps both";
  const Trace shared = simulate({2, 8, Policy::search, {}}, {cut, {{"next", 1, 4}, 0.5, 4, 0, 0, 0}});
  EXPECT_EQ(shared.makespan, 5) << "gives one to `next`";
  test::expect_apart(shared.actual);
}

// What a run wrote comes back as it was, a stop and a kill between.
TEST(Recording, IsWhatHappened) {
  const Folder folder;
  const std::string dir = folder.path.string();
  EXPECT_THROW((void)read_recording(dir), DataError);
  {
    Journal j(dir);
    Scheduler s({2, 8, Policy::search, {}});
    const Task a{"a", 2, 10}, b{"b", 1, 9}, c{"c", 1, 9}, d{"d", 1, 30};
    j.begin(0, 2);
    for (const auto& t : {a, b, d}) j.arrive(0, t, "", ""), s.arrive(t);
    j.plan(0, true, {}, {{"a", {0, 1}, 0, 10, false}, {"b", {0}, 10, 19, false}, {"d", {1}, 10, 40, false}});
    j.start(0, {"a", {0, 1}}, false);
    j.measured(1, "a", 7);
    EXPECT_THROW((void)read_recording(dir), DataError) << "nothing is done";
    j.arrive(2, c, "", "");
    j.cut(3, "a", {0}, 2);
    j.plan(3, true, {}, {{"a", {0}, 3, 5, true}, {"b", {1}, 3, 9, false}, {"d", {0}, 5, 35, false}});
    j.start(3, {"b", {1}}, false);
    j.measured(4, "b", 4);
    j.stop(4.5);
    j.begin(4.5, 2);  // goes on, and is killed once `a` is done
    j.start(4.5, {"a", {0}}, false), j.start(4.5, {"b", {1}}, false);
    j.done(5, "a");
    j.measured(6, "b", 2);
    j.begin(6, 2);
    j.start(6, {"b", {1}}, false), j.start(6, {"c", {0}}, false);
    j.measured(6.5, "c", 1);
    j.done(8, "b"), j.done(8, "c");
    j.start(8, {"d", {0}}, false), j.failed(9, "d", {ExitCode::data, "no"});
    j.refused(9, "letter", "no");
  }
  std::ofstream(dir + "/schedule.jsonl", std::ios::app) << "{\"t\": 9, \"ev";  // killed here
  const Recording found = read_recording(dir);
  EXPECT_EQ(found.gpus, 2);
  EXPECT_EQ(found.makespan, 8);
  EXPECT_EQ(found.left_out, 1) << "d";
  ASSERT_EQ(found.tasks.size(), 3u);
  const Recorded &a = found.tasks[0], &b = found.tasks[1], &c = found.tasks[2];
  EXPECT_EQ(std::tie(a.task.name, a.task.gpus, a.task.seconds, a.before_cut, a.after_cut, a.gpus_after),
            std::tuple("a", 2, 10.0, 3.0, 2.0, 1));
  EXPECT_EQ(std::tie(b.task.seconds, b.before_cut, b.after_cut), std::tuple(6.0, 5.0, 0.0)) << "told by the plan";
  EXPECT_EQ(std::tie(c.arrival, c.before_cut), std::tuple(2.0, 2.0));
  ASSERT_EQ(b.told.size(), 2u);
  EXPECT_EQ(std::tie(b.told[1].after, b.told[1].remaining), std::tuple(3.0, 2.0));
  const Trace again = simulate({found.gpus, 8, Policy::search, {}}, found.tasks);
  test::expect_apart(again.actual);
  EXPECT_EQ(again.makespan, 10) << "c, told 9 s, goes before b, told 6";
  EXPECT_EQ(again.actual.size(), 4u);
  const auto whole = without_exits(found);
  ASSERT_EQ(whole.size(), 3u);
  EXPECT_EQ(std::tie(whole[0].before_cut, whole[0].after_cut), std::tuple(8.0, 0.0)) << "1 s, and 7 that were left";
  EXPECT_EQ(simulate({4, 8, Policy::search, {}}, whole).makespan, 8);
  EXPECT_EQ(recover(dir).failed.size(), 1u) << "the torn line is cut off";
  std::ofstream(dir + "/schedule.jsonl", std::ios::app) << "{\"t\": 1, \"event\": \"stop\"}\n";  // back in time
  try {
    (void)read_recording(dir);
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("schedule.jsonl:28"), std::string::npos) << e.what();
  }
}

// Without files to open it reads nothing, and must not take that for an empty journal.
TEST(Journal, AFileThatCannotBeReadIsKept) {
  const Folder folder;
  const std::string dir = folder.path.string();
  Journal(dir).begin(0, 2);
  const auto size = fs::file_size(dir + "/schedule.jsonl");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  EXPECT_THROW((void)recover(dir), DataError);
  EXPECT_THROW((void)read_recording(dir), DataError);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(fs::file_size(dir + "/schedule.jsonl"), size);
}

// At its cut a task said 9 s, and took 2; it went on with more GPUs; another said as it began that it was over.
TEST(Recording, KnowsNoMoreThanTheSweepDid) {
  const Folder folder;
  const std::string dir = folder.path.string();
  {
    Journal j(dir);
    j.begin(0, 1);
    for (const char* name : {"a", "b", "c"}) j.arrive(0, {name, 1, 5}, "", "");
    j.start(0, {"a", {0}}, false), j.measured(0, "a", 0);
    j.cut(1, "a", {0}, 9), j.done(3, "a");
    j.begin(3, 4);
    j.start(3, {"b", {0}}, false), j.cut(4, "b", {0}, 0), j.measured(4, "b", 0), j.done(5, "b");
    j.start(5, {"c", {0}}, false), j.done(6, "c");
  }
  const Recording found = read_recording(dir);
  EXPECT_EQ(std::tie(found.gpus, found.least_gpus), std::tuple(4, 1));
  ASSERT_EQ(found.tasks.size(), 3u);
  EXPECT_EQ(std::tie(found.tasks[0].after_cut, found.tasks[0].after_cut_told), std::tuple(2.0, 9.0));
  EXPECT_TRUE(without_exits(found).empty()) << "c said nothing";
  for (const Policy policy : policies()) {
    const Trace trace = simulate({1, 8, policy, {}}, found.tasks);
    test::expect_apart(trace.actual);
    EXPECT_EQ(trace.makespan, 6);
  }
}

TEST(Simulator, IsToldAtTheCutWhatTheSweepWasTold) {
  Recorded first{{"first", 2, 10}, 0, 1, 4, 2}, second{{"second", 2, 5}, 0, 5}, late{{"late", 1, 1}, 2, 1};
  first.after_cut_told = 30;
  const Trace trace = simulate({2, 8, Policy::search, {}}, {first, second, late});
  EXPECT_EQ(trace.makespan, 11);
  EXPECT_GT(trace.plan.back().end, 30) << "planned while `first` was taken to last 30 s more";
}

// What a task says of itself as it runs moves the plan on the virtual clock as it does live.
TEST(Simulator, HearsWhatTasksTold) {
  Recorded first{{"first", 1, 100}, 0, 10, 5, 1}, second{{"second", 1, 10}, 0, 10}, wide{{"wide", 2, 1}, 0, 1};
  const int before = simulate({2, 8, Policy::search, {}}, {first, second, wide}).plans;
  first.told = {{1, 14}, {10, 5}, {12, 3}};
  const Trace heard = simulate({2, 8, Policy::search, {}}, {first, second, wide});
  EXPECT_EQ(heard.plans, before + 2) << "one came with the cut";
  test::expect_apart(heard.actual);
}

TEST(Simulator, RunsSixtyFourGpus) {
  std::vector<Recorded> tasks = recorded(88, 5, 0.05, 0.25, true);
  for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].arrival = 0.1 * double(i);
  for (const Policy policy : {Policy::fifo, Policy::search}) {
    const Trace t = simulate({64, 8, policy, {2, 200}}, tasks);
    test::expect_apart(t.actual);
    EXPECT_EQ(t.actual.size(), 2 * tasks.size());
  }
}

TEST(Gantt, DrawsPlanAndActual) {
  const std::vector<GanttBar> bars = {{"a", {0, 1}, 0, 2, false}, {"a", {0}, 2, 4, true}, {"<b>", {1}, 2, 3, false}};
  EXPECT_EQ(gantt_text(bars, 2, 4, {"a", "<b>"}, 8), "    0 AAAAaaaa\n    1 AAAABB..\n      0    4 s\n");
  const std::string svg = gantt_chart("actual", bars, 2, 4, {"a", "<b>"}, 1000);
  EXPECT_NE(svg.find("a, after its cut: 2 s to 4 s"), std::string::npos);
  EXPECT_EQ(svg.find("<b>"), std::string::npos) << "names are escaped";
  std::size_t rects = 0;
  for (std::size_t at = 0; (at = svg.find("<rect", at)) != std::string::npos; ++at) ++rects;
  EXPECT_EQ(rects, 3u);
  EXPECT_FALSE(gantt_text({}, 1, 0, {}, 4).empty());
}

TEST(Inbox, AnswersEveryLetter) {
  const Folder folder;
  const std::string run = folder.path.string(), file = run + "/my task.yaml";
  EXPECT_THROW(post(run, file), DataError) << "there is no such file";
  std::ofstream(file) << "x 1 1 1 0 0 0";
  EXPECT_THROW(post(run, file), DataError) << "no run takes tasks here";
  const Inbox inbox(run);
  const std::string first = post(run, file), second = post(run, file);
  std::ofstream(run + "/inbox/.half") << "not yet renamed";
  fs::create_directory(run + "/inbox/zz-folder");
  fs::create_symlink("/etc/hostname", run + "/inbox/zz-link");
  std::ofstream(run + "/inbox/zz-long") << std::string((1 << 20) + 1, 'x');
  const auto letters = inbox.letters();
  ASSERT_EQ(letters.size(), 5u);
  EXPECT_EQ(letters[0].id, first);
  EXPECT_EQ(letters[1].text, "x 1 1 1 0 0 0");
  for (int i = 2; i < 5; ++i) EXPECT_FALSE(letters[std::size_t(i)].fault.empty()) << letters[std::size_t(i)].id;
  EXPECT_FALSE(await_answer(run, first, std::chrono::milliseconds(1)));
  inbox.answer(first, true, "as task\nx");
  inbox.answer(letters[2].id, false, "no file");
  EXPECT_TRUE(await_answer(run, first, {})->accepted);
  EXPECT_EQ(await_answer(run, first, {})->line, "as task x");
  EXPECT_TRUE(fs::exists(run + "/inbox/accepted/" + first) && fs::exists(run + "/inbox/refused/zz-folder"));
  EXPECT_EQ(inbox.letters().size(), 3u);
}

const std::vector<std::string> four_tasks = {"a 1 0.06 60 0 0 0", "b 2 0.1 100 30 1 0", "c 1 0.03 30 0 0 10",
                                             "d 3 0.04 40 20 2 0"};

TEST(Driver, PacksTasksAndShrinksThem) {
  for (int ranks : {3, 4}) {
    const Folder folder;
    const std::string run = folder.path.string();
    std::atomic<bool> posted = false;
    std::string late, broken;
    run_loopback(ranks, [&](Communicator& world) {
      const auto result = test::drive_fakes(world, run, four_tasks, [&, rank = world.rank()] {
        if (rank == 0 && !posted.exchange(true)) {
          std::ofstream(run + "/late") << "late 2 0.02 20 0 0 0";
          std::ofstream(run + "/broken") << "what is this";
          late = post(run, run + "/late"), broken = post(run, run + "/broken");
        }
        return false;
      });
      EXPECT_FALSE(result.stopped);
      EXPECT_EQ(result.done, 4);
      EXPECT_EQ(result.failed, 1);
    });
    EXPECT_TRUE(await_answer(run, late, {})->accepted);
    EXPECT_FALSE(await_answer(run, broken, {})->accepted);
    const TaskSchedule s = read_schedule(run);
    EXPECT_EQ(s.gpus, ranks);
    test::expect_apart(s.actual);
    test::expect_apart(s.plan);
    ASSERT_EQ(s.actual.size(), 7u) << "b and d have two bars";
    std::map<std::string, std::vector<std::size_t>> widths;
    for (const auto& b : s.actual) widths[b.task].push_back(b.gpus.size());
    EXPECT_EQ(widths["b"], (std::vector<std::size_t>{2, 1}));
    EXPECT_EQ(widths["d"], (std::vector<std::size_t>{3, 2}));
    EXPECT_NE(schedule_section(run).find("<svg"), std::string::npos);
    EXPECT_TRUE(recover(run).unfinished.empty());
    EXPECT_EQ(recover(run).tasks.size(), 5u);
  }
}

TEST(Driver, GoesOnAfterAStop) {
  const Folder folder;
  const std::string run = folder.path.string();
  int stops = 0;
  for (int call = 0; call < 20; ++call) {
    bool stopped = false;
    run_loopback(4, [&](Communicator& world) {
      int rounds = 0;  // stopped in another place every time
      const auto result = test::drive_fakes(world, run, four_tasks,
                                            [&, rank = world.rank()] { return rank == 1 && ++rounds == 8 + 3 * call; });
      if (world.rank() == 0) stopped = result.stopped;
    });
    if (!stopped) break;
    ++stops;
    EXPECT_FALSE(recover(run).unfinished.empty());
  }
  EXPECT_GE(stops, 2);
  const Recovered end = recover(run);
  EXPECT_TRUE(end.unfinished.empty());
  EXPECT_EQ(end.tasks.size(), 4u);
  test::expect_apart(read_schedule(run).actual);
  std::ofstream(run + "/schedule.jsonl", std::ios::app) << "{\"t\": 5, \"eve";
  EXPECT_EQ(recover(run).tasks.size(), 4u) << "a torn last line";
  std::ofstream(run + "/schedule.jsonl", std::ios::app) << "{\"t\": 5, \"event\": \"start\", \"task\": \"nobody\"}\n";
  EXPECT_THROW(recover(run), DataError);
}

// Killed after any line of the journal: it reads, and the run goes on to the end.
TEST(Driver, GoesOnAfterAKill) {
  const Folder folder;
  const std::string run = folder.path.string(), path = run + "/schedule.jsonl";
  run_loopback(4, [&](Communicator& world) { test::drive_fakes(world, run, four_tasks); });
  std::vector<std::string> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(line + "\n");
  ASSERT_GT(lines.size(), 15u);
  for (std::size_t n = 0; n < lines.size(); ++n) {
    std::ofstream out(path);
    for (std::size_t i = 0; i < n; ++i) out << lines[i];
    out << lines[n].substr(0, lines[n].size() / 2);
    out.close();
    const Recovered found = recover(run);
    EXPECT_LE(found.unfinished.size(), found.tasks.size());
    test::expect_apart(read_schedule(run).actual);
    if (n % 6 != 3) continue;
    run_loopback(4, [&](Communicator& world) { test::drive_fakes(world, run, four_tasks); });
    EXPECT_TRUE(recover(run).unfinished.empty());
    EXPECT_EQ(recover(run).tasks.size(), 4u);
    test::expect_apart(read_schedule(run).actual);
  }
}

TEST(Driver, RefusesWhatDoesNotFit) {
  const Folder folder;
  for (const std::string text : {"wide 9 1 1 0 0 0", "never 1 0 1 0 0 0", "nonsense"})
    EXPECT_THROW(run_loopback(2, [&](Communicator& world) { test::drive_fakes(world, folder.path.string(), {text}); }),
                 UsageError)
        << text;
}

}  // namespace
}  // namespace trireme::cluster

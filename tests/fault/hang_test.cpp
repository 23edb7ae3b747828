// links: comm
// Jobs that hang, and ranks that are slow: what the program `trireme_faulty` (trireme with the recipe of
// tests/fault/recipe) says, and that nothing of it is left. TRIREME_LONG=1: the whole campaign, ten of each.
#include "tests/fault/program.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <random>

#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using std::chrono::seconds;

constexpr double limit = 3;  // watchdog.later

bool whole_campaign() { return std::getenv("TRIREME_LONG") != nullptr; }

std::string faulty_program() {
  const char* path = std::getenv("TRIREME_FAULTY");
  return path ? path : fs::path(program_path()).parent_path() / "trireme_faulty";
}

struct Fault {
  std::string kind;
  int rank, ranks, at;
  bool messages = false;  // between ranks, instead of shared memory
};

class Hang : public ::testing::Test {
 protected:
  static Program::Options options(const fs::path& folder, const Fault& f) {
    Program::Options o{folder};
    o.program = faulty_program();
    if (f.messages) o.environment.push_back("TRIREME_MPI_TRANSPORT=p2p");
    return o;
  }
  static Words train(const Fault& f, const Words& more = {}) {
    Words words{"train",
                "e.yaml",
                "--out",
                "run",
                "--ranks",
                std::to_string(f.ranks),
                "fault.kind=" + f.kind,
                "fault.rank=" + std::to_string(f.rank),
                "fault.at=" + std::to_string(f.at)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static void write_experiment(const fs::path& folder) {
    write_text(folder / "e.yaml",
               "recipe: faulty\nsteps: 1000000\nbatch_size: 48\nthreads: 1\nlog_every: 1\nprefetch: false\n"
               "checkpoint: {every: 0}\nwatchdog: {first: 20, later: 3, warn: 0}\n");
  }

  // Seconds from the fault to the end of the job. Checks what is said and what is left.
  static double expect_named(const Fault& f, const Words& words, const Words& more = {}, const Words& launcher = {}) {
    SCOPED_TRACE(f.kind + " on rank " + std::to_string(f.rank) + " of " + std::to_string(f.ranks) + " at " +
                 std::to_string(f.at) + (f.messages ? ", messages" : ""));
    TempFolder folder;
    write_experiment(folder.path);
    auto o = options(folder.path, f);
    o.launcher = launcher;
    Words arguments = train(f, more);
    if (!launcher.empty()) arguments.erase(arguments.begin() + 4, arguments.begin() + 6);  // --ranks N
    Program p(arguments, o);
    const Outcome out = p.wait(seconds(60));
    const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    const double took = now - std::atof(read_text(folder.path / "fault.time").c_str());
    EXPECT_EQ(out.code, 4) << out;
    EXPECT_TRUE(p.none_left());
    const Words errors = out.errors();
    EXPECT_EQ(errors.size(), 1u) << out;
    if (errors.empty()) return took;
    EXPECT_NE(errors[0].find("collective "), std::string::npos) << out;
    // Two communicators at once: either collective may be late first, and its message says what the others wait in.
    const std::string who = "rank " + std::to_string(f.rank) + (f.kind == "other_communicator" ? "" : ": ");
    EXPECT_NE(errors[0].find(who), std::string::npos) << out;
    for (const auto& w : words) EXPECT_NE(errors[0].find(w), std::string::npos) << w << "\n" << out;
    EXPECT_LT(took, limit + 5) << out;
    // The ranks that answered left their calls.
    for (int r = 0; r < f.ranks; ++r) {
      const auto file = folder.path / "run" / ("hang.rank" + std::to_string(r) + ".json");
      if (r == f.rank && f.kind.starts_with("stop")) continue;
      const auto record = nlohmann::json::parse(read_text(file), nullptr, false);
      EXPECT_TRUE(record.is_object() && record["rank"] == r && !record["communicators"].empty()) << file;
    }
    return took;
  }

  static void report(const std::string& what, std::vector<double> seconds) {
    std::sort(seconds.begin(), seconds.end());
    std::cout << what << ": " << seconds.size() << " hangs with a limit of " << limit << " s, fault to end: median "
              << seconds[seconds.size() / 2] << " s, largest " << seconds.back() << " s" << std::endl;
  }

  // `few` or ten of a kind, on 2 to 4 ranks and at different steps.
  static void campaign(const std::string& kind, bool last_rank, const Words& words, int few) {
    const int n = whole_campaign() ? 10 : few;
    std::mt19937 random(std::uint32_t(kind.size()) * 7 + last_rank);
    std::vector<double> took;
    for (int i = 0; i < n && !HasFailure(); ++i) {
      const int ranks = 2 + i % 3;
      took.push_back(expect_named({kind, last_rank ? ranks - 1 : 0, ranks, 1 + int(random() % 40), i % 2 == 1}, words));
    }
    report(kind + (last_rank ? " of the last rank" : " of rank 0"), took);
  }
};

const char* const stopped = "stopped (its process does not answer)";

TEST_F(Hang, Rank0Stopped) { campaign("stop", false, {stopped, "did not answer"}, 1); }
TEST_F(Hang, LastRankStopped) { campaign("stop", true, {stopped, "did not answer"}, 1); }
TEST_F(Hang, StoppedInACollective) {
  campaign("stop_in_collective", true, {stopped, "of \"features\"", "faulty: loss"}, 1);
}
TEST_F(Hang, StoppedInTheLoader) { campaign("stop_in_loader", true, {stopped}, 1); }
TEST_F(Hang, SpinningInUserCode) {
  campaign("spin", true,
           {"did not enter it", "in the step after step", "all_reduce of 1048576 f32, 4096 KiB, at faulty: loss"}, 1);
}
TEST_F(Hang, BlockedInTheLoader) {
  campaign("block_in_loader", false, {"did not enter it", "in the loader after step"}, 1);
}
TEST_F(Hang, OtherCommunicator) {
  campaign("other_communicator", true, {"\"features\"", "\"control\"", "did not enter it"}, 1);
}

TEST_F(Hang, FourRanksOverMessages) {
  expect_named({"stop", 2, 4, 5, true}, {stopped});
  expect_named({"spin", 1, 4, 5, true}, {"did not enter it"});
}

TEST_F(Hang, InTheFirstStepItsOwnLimitHolds) {
  expect_named({"stop", 1, 2, 0}, {stopped}, {"watchdog.first=2", "watchdog.later=1000"});
}

TEST_F(Hang, UnderMpirun) {
  expect_named({"stop", 0, 3, 4}, {stopped}, {}, {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", "3"});
}

TEST_F(Hang, WarnsOnceAndGoesOn) {
  TempFolder folder;
  write_experiment(folder.path);
  Program p(train({"none", 0, 3, 0}, {"watchdog.warn=1", "watchdog.later=60"}), options(folder.path, {}));
  ASSERT_TRUE(wait_until([&] { return read_text(folder.path / "run/metrics.jsonl").size() > 2000 || p.ended(); }));
  ASSERT_TRUE(p.signal_rank(1, SIGSTOP));
  EXPECT_TRUE(wait_until([&] { return p.said().find("trireme: warning: collective ") != std::string::npos; }));
  std::this_thread::sleep_for(seconds(2));  // it is not said again
  const auto before = read_text(folder.path / "run/metrics.jsonl").size();
  ASSERT_TRUE(p.signal_rank(1, SIGCONT));
  EXPECT_TRUE(wait_until([&] { return read_text(folder.path / "run/metrics.jsonl").size() > before + 2000; }));
  EXPECT_FALSE(p.ended());
  p.signal(SIGTERM);
  const Outcome o = p.wait();
  EXPECT_EQ(o.code, 85) << o;
  const Words lines = lines_of(o.err);
  EXPECT_EQ(
      std::count_if(lines.begin(), lines.end(), [](auto& l) { return l.starts_with("trireme: warning: collective "); }),
      1)
      << o;
  EXPECT_TRUE(o.errors().empty()) << o;
}

// Killed, mpirun takes nobody along: the ranks must notice, a stopped one too.
TEST_F(Hang, NoRankOutlivesMpirun) {
  for (const bool stop : {false, true}) {
    TempFolder folder;
    write_experiment(folder.path);
    auto o = options(folder.path, {});
    o.launcher = {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", "3"};
    Program p({"train", "e.yaml", "--out", "run", "watchdog.later=1000"}, o);
    ASSERT_TRUE(wait_until([&] { return fs::exists(folder.path / "run/metrics.jsonl") || p.ended(); }));
    std::this_thread::sleep_for(seconds(1));
    ASSERT_FALSE(p.ended()) << p.wait();
    if (stop) {
      ASSERT_TRUE(p.signal_rank(1, SIGSTOP));
    }
    p.signal(SIGKILL);
    p.wait();
    EXPECT_TRUE(wait_until([&] { return p.processes().empty(); }, seconds(5))) << "stopped: " << stop;
  }
}

TEST_F(Hang, ASlowRankIsNamed) {
  TempFolder folder;
  write_experiment(folder.path);
  const Program::Options o = options(folder.path, {});
  const auto slow = train({"slow", 1, 2, 0}, {"fault.ms=120", "work_ms=10", "steps=30"});
  Program named(slow, o);
  const Outcome out = named.wait();
  EXPECT_EQ(out.code, 0) << out;
  EXPECT_NE(out.out.find("rank 1 is slow: its own work takes"), std::string::npos) << out;
  std::int64_t at = 0;
  for (const auto& line : lines_of(read_text(folder.path / "run/metrics.jsonl"))) {
    const auto j = nlohmann::json::parse(line);
    if (j.contains("straggler")) {
      at = j["step"];
      EXPECT_EQ(j["straggler"], 1);
    }
    if (!j.contains("step_ms")) continue;
    for (const char* key :
         {"step_ms", "data_ms", "forward_ms", "backward_ms", "comm_exposed_ms", "optimizer_ms", "own_ms"}) {
      const double least = j[std::string(key) + "_min"], mean = j[key], most = j[std::string(key) + "_max"];
      EXPECT_LE(least, mean + 1e-9) << line;
      EXPECT_LE(mean, most + 1e-9) << line;
    }
    EXPECT_GT(double(j["own_ms_max"]) - double(j["own_ms_min"]), 60) << line;
  }
  EXPECT_GT(at, 0);
  EXPECT_LE(at, 20) << "named within 20 steps";
}

TEST_F(Hang, NoFalseAlarmInAThousandHealthySteps) {
  TempFolder folder;
  write_experiment(folder.path);
  const Program::Options o = options(folder.path, {});
  Program healthy(train({"none", 0, 2, 0}, {"work_ms=2", "steps=1000"}), o);
  const Outcome out = healthy.wait();
  EXPECT_EQ(out.code, 0) << out.err;
  EXPECT_EQ(out.out.find("is slow"), std::string::npos) << out.out.substr(out.out.find("is slow"), 200);
}

}  // namespace
}  // namespace trireme::test

// links: comm
// Real jobs on the test cluster (tests/slurm/cluster): two nodes, one rank on each.
#include "tests/fault/experiment.h"
#include "tests/fault/stop_at.h"

#include <array>
#include <cstdio>

namespace trireme::test {
namespace {

using std::chrono::seconds;

std::string capture(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string text;
  std::array<char, 4096> part;
  while (pipe)
    if (const auto n = fread(part.data(), 1, part.size(), pipe); n > 0)
      text.append(part.data(), n);
    else
      break;
  if (pipe) pclose(pipe);
  return text;
}

std::string missing() {
  if (geteuid() != 0) return "needs root to start a Slurm cluster of its own";
  for (const char* program : {"slurmctld", "slurmd", "sbatch", "munged"})
    if (system(("PATH=$PATH:/usr/sbin:/sbin command -v " + std::string(program) + " >/dev/null").c_str()) != 0)
      return std::string(program) + " is not installed: apt-get install --no-install-recommends slurm-wlm munge";
  return "";
}

class Slurm : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!missing().empty()) return;
    folder_ = new TempFolder;
    const std::string cluster = (dir() / "cluster").string();
    const std::string said = capture(script() + " start " + cluster + " 2 " + std::to_string(getpid()));
    ASSERT_TRUE(fs::exists(cluster + "/slurm.conf")) << said;
    setenv("SLURM_CONF", (cluster + "/slurm.conf").c_str(), 1);
    write_text(dir() / "e.yaml", experiment);
    const Outcome o = trireme({"train", "e.yaml", "--ranks", "2", "--out", "whole"});
    ASSERT_EQ(o.code, 0) << o;
  }
  static void TearDownTestSuite() {
    if (!folder_) return;
    capture(script() + " stop " + (dir() / "cluster").string());
    delete std::exchange(folder_, nullptr);
  }
  void SetUp() override {
    if (const auto why = missing(); !why.empty()) GTEST_SKIP() << why;
  }

  // Some seconds on two ranks.
  static constexpr const char* experiment =
      "recipe: mlp\nsizes: [256, 512, 512, 10]\nsamples: 2000\nsteps: 400\nbatch_size: 64\nthreads: 1\n"
      "log_every: 1\neval_every: 0\ncheckpoint: {every: 1000, keep: 2}\noptimizer: {lr: 1.0e-3}\n";

  static fs::path dir() { return folder_->path; }
  static std::string script() { return std::string(std::getenv("TRIREME_SOURCE")) + "/tests/slurm/cluster"; }

  // Without the mark that would end a job's processes together with the program that submitted it.
  static Outcome trireme(const Words& words, const Words& environment = {}) {
    return run_program(words, {dir(), environment, {"env", "-u", "TRIREME_TEST_MARK"}});
  }

  // Submits on two nodes and returns the job's number.
  static std::string submit(Words words, const Words& environment = {}) {
    words.insert(words.begin(), "submit");
    words.insert(words.end(), {"--nodes", "2"});
    const Outcome o = trireme(words, environment);
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_TRUE(o.out.starts_with("submitted: job=")) << o;
    return o.out.substr(15, o.out.find(' ', 15) - 15);
  }

  // The value of `key` in what Slurm knows of the job ("" if it does not know the job).
  static std::string field(const std::string& job, const std::string& key) {
    const std::string text = " " + capture("scontrol -o show job " + job);
    const auto at = text.find(" " + key + "=");
    if (at == text.npos) return "";
    const auto begin = at + key.size() + 2;
    return text.substr(begin, text.find_first_of(" \n", begin) - begin);
  }
  static bool ends_as(const std::string& job, const std::string& state, seconds limit = seconds(60)) {
    return wait_until(
               [&] {
                 std::this_thread::sleep_for(std::chrono::milliseconds(50));
                 const std::string now = field(job, "JobState");
                 return now == state || (now != "PENDING" && now != "RUNNING" && now != "COMPLETING");
               },
               limit) &&
           field(job, "JobState") == state;
  }
  // The rank that has stopped itself (stop_at.h); 0 if none does.
  static pid_t stopped_rank() {
    pid_t rank = 0;
    const std::string mine = "SLURM_CONF=" + std::string(std::getenv("SLURM_CONF"));
    wait_until([&] { return (rank = stopped_of(processes_with({mine}))) != 0; }, seconds(40));
    return rank;
  }
  static bool reaches_step(const std::string& run, std::int64_t step) {
    return wait_until([&] { return last_step(dir() / run) >= step; }, seconds(40));
  }
  // The job's output without its steps.
  static std::string log(const std::string& out, const std::string& job) {
    std::string text;
    for (const auto& line : lines_of(read_text(dir() / (out + ".slurm-" + job + ".out"))))
      if (!line.starts_with("step ")) text += line + "\n";
    return text;
  }

  // The warning before the time limit goes to the batch shell, which passes it on to all ranks.
  static void expect_stop_on_warning(const std::string& out, const Words& environment) {
    const std::string job = submit({"e.yaml", "steps=1000000", "--out", out, "--requeues", "0"}, environment);
    ASSERT_TRUE(reaches_step(out, 50)) << log(out, job);
    capture("scancel --batch --signal=USR1 " + job);
    EXPECT_TRUE(ends_as(job, "FAILED")) << log(out, job);
    EXPECT_EQ(field(job, "ExitCode"), "85:0");
    EXPECT_NE(log(out, job).find("not queued again"), std::string::npos) << log(out, job);
    ASSERT_FALSE(checkpoint_steps(dir() / out).empty());
    EXPECT_EQ(checkpoint_steps(dir() / out).back(), last_step(dir() / out));
    EXPECT_NE(log(out, job).find("stopped at step " + std::to_string(last_step(dir() / out))), std::string::npos);
  }

  static void expect_end_of_the_unbroken_run(const std::string& run) {
    EXPECT_EQ(final_state(dir() / run), final_state(dir() / "whole"));
    EXPECT_GT(final_state(dir() / run).size(), 10u);
    EXPECT_EQ(logged(dir() / run), logged(dir() / "whole"));
  }

  static TempFolder* folder_;
};
TempFolder* Slurm::folder_ = nullptr;

TEST_F(Slurm, TwoNodes) {
  const std::string job = submit({"e.yaml", "--out", "two"});
  EXPECT_TRUE(ends_as(job, "COMPLETED")) << log("two", job);
  EXPECT_EQ(field(job, "NumNodes"), "2");
  EXPECT_NE(log("two", job).find("done: step=400"), std::string::npos) << log("two", job);
  expect_end_of_the_unbroken_run("two");
}

// SIGUSR1 reaches both ranks through Slurm; the job queues itself again and ends as if nothing had happened.
TEST_F(Slurm, StoppedRequeuedResumed) {
  const std::string job = submit({"e.yaml", "--out", "requeued"}, stopping_at(logged_step(100)));
  const pid_t rank = stopped_rank();
  ASSERT_GT(rank, 0) << log("requeued", job);
  capture("scancel --signal=USR1 " + job);
  EXPECT_TRUE(wait_until([&] { return has_signal(status_of(rank), "ShdPnd:", SIGUSR1); }));
  kill(rank, SIGCONT);
  ASSERT_TRUE(wait_until([&] { return field(job, "Restarts") == "1"; }, seconds(20))) << log("requeued", job);
  EXPECT_TRUE(ends_as(job, "COMPLETED")) << log("requeued", job);
  const std::string said = log("requeued", job);
  EXPECT_NE(said.find("stopped at step"), std::string::npos) << said;
  EXPECT_NE(said.find("queued again (1 of at most 20 times)"), std::string::npos) << said;
  EXPECT_NE(said.find("resumed at step"), std::string::npos) << said;
  EXPECT_NE(said.find("done: step=400"), std::string::npos) << said;
  expect_end_of_the_unbroken_run("requeued");
}

TEST_F(Slurm, WarningOfTheTimeLimit) { expect_stop_on_warning("warned", {}); }

// scancel: a checkpoint, no requeue; submitting the same again resumes.
TEST_F(Slurm, CancelledAndSubmittedAgain) {
  const std::string job = submit({"e.yaml", "--out", "cancelled"}, stopping_at(logged_step(100)));
  ASSERT_GT(stopped_rank(), 0) << log("cancelled", job);
  capture("scancel " + job);  // which lets it go on
  EXPECT_TRUE(ends_as(job, "CANCELLED")) << log("cancelled", job);
  ASSERT_TRUE(wait_until([&] { return !checkpoint_steps(dir() / "cancelled").empty(); }, seconds(10)))
      << log("cancelled", job);
  ASSERT_TRUE(wait_until([&] { return capture("squeue -h").empty(); }, seconds(20))) << capture("squeue");
  EXPECT_EQ(log("cancelled", job).find("queued again"), std::string::npos);
  EXPECT_LT(checkpoint_steps(dir() / "cancelled").back(), 400);
  const std::string again = submit({"e.yaml", "--out", "cancelled"});
  EXPECT_TRUE(ends_as(again, "COMPLETED")) << log("cancelled", again);
  EXPECT_NE(log("cancelled", again).find("resumed at step"), std::string::npos) << log("cancelled", again);
  expect_end_of_the_unbroken_run("cancelled");
}

TEST_F(Slurm, SweepIsAnArray) {
  const std::string job = submit({"e.yaml", "seed=2024,7", "steps=20,30", "--out", "sweep"});
  for (int k = 0; k < 4; ++k)
    EXPECT_TRUE(ends_as(job + "_" + std::to_string(k), "COMPLETED")) << log("sweep", job + "_" + std::to_string(k));
  for (int k = 0; k < 4; ++k) EXPECT_EQ(last_step(dir() / ("sweep." + std::to_string(k))), k % 2 ? 30 : 20) << k;
  EXPECT_FALSE(fs::exists(dir() / "sweep.4"));
  EXPECT_EQ(logged(dir() / "sweep.0").front(), logged(dir() / "whole").front());
  EXPECT_NE(logged(dir() / "sweep.2").front(), logged(dir() / "whole").front());
  ASSERT_EQ(trireme({"train", "e.yaml", "seed=7", "steps=20", "--ranks", "2", "--out", "one"}).code, 0);
  EXPECT_EQ(final_state(dir() / "sweep.2"), final_state(dir() / "one"));
}

// The scaling study in one allocation: a job step of each size.
TEST_F(Slurm, ScalingStudy) {
  const std::string source = std::getenv("TRIREME_SOURCE");
  const std::string said = capture("cd " + dir().string() + " && TRIREME=" + program_path() +
                                   " sbatch --parsable --nodes=2 --ntasks-per-node=1 --output=scale.out " + source +
                                   "/slurm/scale.sbatch e.yaml --weak --steps 5 --out study");
  const std::string number = said.substr(0, said.find_first_not_of("0123456789"));
  EXPECT_TRUE(ends_as(number, "COMPLETED")) << read_text(dir() / "scale.out");
  EXPECT_FALSE(listing(dir() / "study").empty()) << read_text(dir() / "scale.out");
}

// Nothing of a value is run or expanded, by the shell or by Slurm.
TEST_F(Slurm, HostileValues) {
  const std::string evil = "it's $(touch pwned) `touch pwned` \"; touch pwned; #%j %A {a,b} *";
  fs::create_directories(dir() / evil);
  write_text(dir() / evil / (evil + ".yaml"), experiment);
  const std::string job = submit({evil + "/" + evil + ".yaml", "steps=5", "--out", evil + "/run " + evil});
  EXPECT_TRUE(ends_as(job, "COMPLETED")) << capture("scontrol show job " + job);
  EXPECT_EQ(last_step(dir() / evil / ("run " + evil)), 5);
  EXPECT_NE(log(evil + "/run " + evil, job).find("done: step=5"), std::string::npos);
  for (const auto& [name, unused] : listing(dir())) EXPECT_FALSE(name.ends_with("pwned")) << name;
}

TEST_F(Slurm, RefusedBySlurm) {
  const Outcome o = trireme({"submit", "e.yaml", "--partition", "nowhere"});
  EXPECT_EQ(o.code, 2) << o;
  EXPECT_EQ(lines_of(o.err).size(), 1u) << o;
  EXPECT_NE(o.err.find("nvalid partition"), std::string::npos) << o;
  EXPECT_NE(o.err.find("sinfo"), std::string::npos) << o;
}

// Without PMIx srun starts tasks that do not know each other.
TEST_F(Slurm, TasksThatNothingConnectsAreRefused) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string said = capture("(cd " + dir().string() + " && srun -N2 -n4 --mpi=none " + program_path() +
                                   " train e.yaml --out alone; echo code $?)");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(30));
  EXPECT_NE(said.find("trireme: error: launch: srun started 4 tasks"), std::string::npos) << said;
  EXPECT_EQ(said.find("trireme: error", said.find("trireme: error") + 1), std::string::npos) << said;
  EXPECT_NE(said.find("code 2"), std::string::npos) << said;
  EXPECT_FALSE(fs::exists(dir() / "alone"));
}

// A Slurm without PMIx, played by an srun that does not list it.
TEST_F(Slurm, FallsBackToMpirun) {
  const std::string real = capture("command -v srun"), path = (dir() / "bin").string();
  fs::create_directories(path);
  write_text(path + "/srun",
             "#!/bin/sh\n[ \"$1\" = --mpi=list ] && { echo none; exit; }\n"
             "case \" $* \" in *pmix*) exit 9;; esac\nexec " +
                 real.substr(0, real.size() - 1) + " \"$@\"\n");
  fs::permissions(path + "/srun", fs::perms::owner_all);
  expect_stop_on_warning("mpirun", {"PATH=" + path + ":" + std::getenv("PATH")});
}

}  // namespace
}  // namespace trireme::test

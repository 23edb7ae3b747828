// links: comm
// Interrupted and killed trainings on 2 ranks: the same command again ends in the state of the uninterrupted
// run, bit for bit. Where a signal falls is not left to luck: rank 0 stops itself as the phase begins (stop_at.h), rank
// 1 is frozen (SIGSTOP), and rank 0 goes on and waits for it within that phase; then the signal is sent, and rank 1
// thawed once it has come.
#include "tests/fault/experiment.h"
#include "tests/fault/stop_at.h"

#include <algorithm>
#include <iostream>
#include <random>

namespace trireme::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int steps = 30, steps_an_epoch = 5, eval_every = 12;

const Words train_words{"train", "e.yaml", "--ranks", "2", "--out"};

class Interrupt : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!missing_for_pairs().empty()) return;
    folder_ = new TempFolder;
    prepare_pairs(dir());
    write_text(dir() / "e.yaml",
               experiment(steps, 96, 2, "eval_every: 12\ncheckpoint: {every: 8, keep: 3, best: true}\n"));
    const Outcome o = run_program(train("whole"), {dir()});
    ASSERT_EQ(o.code, 0) << o;
    whole_took_ = std::chrono::duration<double>(o.seconds);
    ASSERT_EQ(last_step(dir() / "whole"), steps);
    ASSERT_EQ(logged(dir() / "whole", "epoch")[steps_an_epoch - 1].second, 0) << "an epoch is shorter than assumed";
    ASSERT_EQ(logged(dir() / "whole", "epoch")[steps_an_epoch].second, 1) << "an epoch is longer than assumed";
  }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }
  void SetUp() override {
    if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  }

  static std::chrono::duration<double> whole_took_;
  static fs::path dir() { return folder_->path; }
  static Words train(const std::string& out, const Words& more = {}) {
    Words words = train_words;
    words.push_back(out);
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  // Runs the command until it is done, and compares with the uninterrupted run.
  static void expect_resumes_to_the_same_end(const std::string& out, const Words& more = {}) {
    const auto from = checkpoint_steps(dir() / out);
    Program p(train(out, more), {dir()});
    const Outcome o = p.wait();
    ASSERT_EQ(o.code, 0) << o;
    EXPECT_TRUE(o.errors().empty()) << o;
    EXPECT_TRUE(p.none_left());
    if (!from.empty() && from.back() == steps)
      EXPECT_NE(o.out.find("the run is complete"), std::string::npos) << o;
    else if (!from.empty())
      EXPECT_NE(o.out.find("resumed at step " + std::to_string(from.back()) + " of"), std::string::npos) << o;
    else
      EXPECT_EQ(o.out.find("resumed"), std::string::npos) << o;
    EXPECT_NE(o.out.find("\ndone: step=30 loss="), std::string::npos) << o;
    EXPECT_EQ(final_state(dir() / out), final_state(dir() / "whole"));
    EXPECT_GT(final_state(dir() / out).size(), 50u);
    EXPECT_EQ(logged(dir() / out), logged(dir() / "whole"));
    EXPECT_EQ(logged(dir() / out, "eval/image_to_text_r1"), logged(dir() / "whole", "eval/image_to_text_r1"));
    for (const auto& [name, unused] : listing(dir() / out)) EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
    if (more.empty()) expect_best_is_kept(out);
  }

  // The checkpoint that is marked best is there, and of the step that had the best evaluation.
  static void expect_best_is_kept(const std::string& out) {
    const auto evaluations = logged(dir() / out, "eval/image_to_text_r10");
    ASSERT_EQ(evaluations.size(), 3u);
    auto best = evaluations.front();
    for (const auto& e : evaluations)
      if (e.second > best.second) best = e;
    std::int64_t marked = 0;
    for (const auto step : checkpoint_steps(dir() / out))
      if (manifest_of(dir() / out, step)["best"]) marked = step;
    EXPECT_EQ(marked, best.first);
  }

  using Condition = std::function<bool()>;

  // How long the threads of a process have waited for a core.
  static std::chrono::nanoseconds kept_waiting(pid_t p) {
    std::chrono::nanoseconds all{0};
    std::error_code gone;
    for (const auto& thread : fs::directory_iterator("/proc/" + std::to_string(p) + "/task", gone)) {
      std::int64_t ran = 0, waited = 0;
      if (std::istringstream(read_text(thread.path() / "schedstat")) >> ran >> waited)
        all += std::chrono::nanoseconds(waited);
    }
    return all;
  }
  // Rank 0 goes on to where it needs rank 1: a while in which nothing keeps it from a core.
  static void let_rank_0_go_on(const Program& p) {
    const pid_t rank0 = p.rank(0);
    const auto begin = std::chrono::steady_clock::now();
    const auto before = kept_waiting(rank0);
    const auto had = [&] { return std::chrono::steady_clock::now() - begin - (kept_waiting(rank0) - before); };
    wait_until([&] { return had() > milliseconds(150); }, seconds(10));
  }
  // The ranks have been told to stop: the frozen one cannot take its signal, and mpirun goes from rank 0 up.
  static bool told(const Program& p) {
    return wait_until([rank1 = p.rank(1)] { return has_signal(status_of(rank1), "ShdPnd:", SIGUSR1); });
  }

  // A run on 2 ranks whose rank 0 has gone on from `at` to where it needs rank 1, which is frozen; null if none came
  // there.
  static std::unique_ptr<Program> freeze_at(const std::string& at, const Words& words, const Words& launcher = {}) {
    auto p = std::make_unique<Program>(words, Program::Options{dir(), stopping_at(at), launcher});
    const pid_t rank0 = await_stopped(*p);
    EXPECT_TRUE(rank0 != 0 && rank0 == p->rank(0)) << "rank 0 was never at " << at;
    if (rank0 == 0 || !p->signal_rank(1, SIGSTOP)) return nullptr;
    kill(rank0, SIGCONT);
    let_rank_0_go_on(*p);
    EXPECT_FALSE(p->ended());
    return p;
  }
  static Outcome thaw(Program& p) {
    EXPECT_TRUE(p.signal_rank(1, SIGCONT));
    return p.wait();
  }

  // A run in one process, which gets `s` after step 3.
  static Outcome signal_alone(const Words& words, int s) {
    Program p(words, {dir(), stopping_at(logged_step(3))});
    EXPECT_EQ(await_stopped(p), p.pid());
    p.signal(s);
    kill(p.pid(), SIGCONT);
    return p.wait();
  }

  // SIGTERM within the phase that begins at `at`: exit code 85 after a checkpoint, whose step is returned; 0 if the
  // phase was never hit.
  static std::int64_t stop_in(const std::string& out, const std::string& at, const Condition& still,
                              const Words& more = {}) {
    const auto p = freeze_at(at, train(out, more));
    if (!p) return 0;
    EXPECT_TRUE(still());
    p->signal(SIGTERM);
    EXPECT_TRUE(told(*p));
    EXPECT_TRUE(still()) << "the phase ended although rank 1 was frozen";
    const Outcome o = thaw(*p);
    EXPECT_EQ(o.code, 85) << o;
    EXPECT_TRUE(o.errors().empty()) << o;
    EXPECT_EQ(o.err, "") << o;
    EXPECT_TRUE(p->none_left());
    EXPECT_LT(p->seconds_from_signal, 5) << o;
    std::cout << "SIGTERM to exit: " << p->seconds_from_signal << " s\n";
    const auto saved = checkpoint_steps(dir() / out);
    EXPECT_FALSE(saved.empty()) << o;
    EXPECT_EQ(saved.empty() ? -1 : saved.back(), last_step(dir() / out)) << "a step after the checkpoint is in the log";
    EXPECT_NE(o.out.find("stopped at step " + std::to_string(saved.back())), std::string::npos) << o;
    return saved.back();
  }

  // A folder ckpt/step_S.tmp-* is there, and no ckpt/step_S yet.
  static bool writing(const std::string& out, const std::string& step) {
    std::error_code none;
    bool begun = false;
    for (const auto& entry : fs::directory_iterator(dir() / out / "ckpt", none))
      begun |= entry.path().filename().string().starts_with("step_" + step + ".tmp-");
    return begun && !fs::exists(dir() / out / "ckpt" / ("step_" + step));
  }

 private:
  static TempFolder* folder_;
};

TempFolder* Interrupt::folder_ = nullptr;
std::chrono::duration<double> Interrupt::whole_took_{};

TEST_F(Interrupt, MidEpoch) {
  EXPECT_EQ(stop_in("mid", logged_step(11), [] { return last_step(dir() / "mid") == 11; }), 12);
  expect_resumes_to_the_same_end("mid");
}

TEST_F(Interrupt, LastStepOfAnEpoch) {
  EXPECT_EQ(stop_in("epoch", logged_step(19), [] { return last_step(dir() / "epoch") == 19; }) % steps_an_epoch, 0);
  expect_resumes_to_the_same_end("epoch");
}

TEST_F(Interrupt, DuringEvaluation) {
  const auto evaluating = [] {
    const fs::path run = dir() / "eval";
    return last_step(run) == eval_every && logged(run, "eval/image_to_text_r1").empty();
  };
  EXPECT_EQ(stop_in("eval", logged_step(eval_every), evaluating), eval_every + 1);
  expect_resumes_to_the_same_end("eval");
}

TEST_F(Interrupt, DuringACheckpointWrite) {
  EXPECT_GT(stop_in("write", "write/ckpt/step_00000016.tmp-", [] { return writing("write", "00000016"); }), 16);
  EXPECT_TRUE(fs::exists(dir() / "write/ckpt/step_00000016")) << "the write in flight was given up";
  expect_resumes_to_the_same_end("write");
}

TEST_F(Interrupt, BeforeTheFirstCheckpointAndAgain) {
  const Words never{"checkpoint.every=0"};
  const auto at = [](std::int64_t s) { return [s] { return last_step(dir() / "first") == s; }; };
  EXPECT_EQ(stop_in("first", logged_step(2), at(2), never), 3);
  EXPECT_EQ(stop_in("first", logged_step(4), at(4), never), 5) << "a resumed run is stopped as well";
  expect_resumes_to_the_same_end("first", never);
}

// The ranks do not catch signals yet when this one comes: it must wait for them, and neither kill them nor be
// lost.
TEST_F(Interrupt, WhileTheRanksStart) {
  Program p(train("start"), {dir(), stopping_at("started as rank 1")});
  ASSERT_TRUE(await_stopped(p) != 0);
  p.signal(SIGTERM);
  const Outcome o = thaw(p);
  EXPECT_EQ(o.code, 85) << o;
  EXPECT_TRUE(p.none_left());
  EXPECT_EQ(checkpoint_steps(dir() / "start"), std::vector<std::int64_t>{1});
  expect_resumes_to_the_same_end("start");
}

TEST_F(Interrupt, SecondSignalEndsAtOnce) {
  for (const int s : {SIGTERM, SIGINT}) {
    const std::string out = "second" + std::to_string(s);
    const auto p = freeze_at("ckpt/step_00000008/", train(out));
    ASSERT_TRUE(p);
    p->signal(s);  // not answered: rank 1 is frozen
    EXPECT_TRUE(told(*p));
    EXPECT_FALSE(p->ended());
    p->signal(s);
    const Outcome o = p->wait(seconds(15));
    EXPECT_EQ(o.code, 130) << o;
    EXPECT_TRUE(o.errors().empty()) << o;
    EXPECT_TRUE(p->none_left()) << "processes are left";
    EXPECT_LT(p->seconds_from_signal, 5);
    std::cout << "second signal to exit: " << p->seconds_from_signal << " s\n";
    const auto kept = checkpoint_steps(dir() / out);
    ASSERT_FALSE(kept.empty());
    EXPECT_EQ(kept.front(), 8) << "checkpoints before it stay";
    if (s == SIGTERM) expect_resumes_to_the_same_end(out);
  }
}

// Under mpirun, as batch systems do it.
TEST_F(Interrupt, UserSignalUnderMpirun) {
  const Words launcher{"mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"};
  const auto p = freeze_at(logged_step(3), {"train", "e.yaml", "--out", "mpirun"}, launcher);
  ASSERT_TRUE(p);
  p->signal(SIGUSR1);
  EXPECT_TRUE(told(*p));
  const Outcome o = thaw(*p);
  EXPECT_EQ(o.code, 85) << o;
  EXPECT_TRUE(o.errors().empty()) << o;
  EXPECT_TRUE(p->none_left());
  expect_resumes_to_the_same_end("mpirun");
}

TEST_F(Interrupt, OneProcessAlone) {
  const auto train_alone = [](const std::string& out) { return Words{"train", "e.yaml", "--out", out}; };
  ASSERT_EQ(run_program(train_alone("alone"), {dir()}).code, 0);
  const Outcome o = signal_alone(train_alone("alone2"), SIGINT);
  EXPECT_EQ(o.code, 85) << o;
  EXPECT_EQ(o.err, "") << o;
  EXPECT_EQ(run_program(train_alone("alone2"), {dir()}).code, 0);
  EXPECT_EQ(final_state(dir() / "alone2"), final_state(dir() / "alone"));
  EXPECT_EQ(logged(dir() / "alone2"), logged(dir() / "alone"));
}

// What has nothing to save ends at the first signal: it is left to the system, until the process ends.
TEST_F(Interrupt, EvaluationLeavesSignalsAlone) {
  ASSERT_EQ(run_program({"train", "e.yaml", "--out", "evaluated"}, {dir()}).code, 0);
  Program p({"eval", "evaluated"}, {dir()});
  bool caught = true;
  while (!p.ended()) {
    const std::string status = status_of(p.pid());
    if (status.find("SigCgt:") != status.npos) caught = has_signal(status, "SigCgt:", SIGTERM);
    std::this_thread::sleep_for(milliseconds(2));
  }
  EXPECT_EQ(p.wait().code, 0);
  EXPECT_FALSE(caught);
}

TEST_F(Interrupt, KilledRank) {
  struct Case {
    std::string out;
    int rank;
    std::string at;
    std::vector<std::int64_t> kept;
  };
  const std::vector<Case> cases{{"kill1", 1, "kill1/ckpt/step_00000008/", {8}},
                                {"kill0", 0, logged_step(4), {}},
                                {"killw", 1, "killw/ckpt/step_00000016.tmp-", {8, 12}}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.out);
    // The other rank is frozen meanwhile: what was on disk when the rank died is known.
    const auto p = freeze_at(c.at, train(c.out));
    ASSERT_TRUE(p);
    EXPECT_EQ(checkpoint_steps(dir() / c.out), c.kept);
    const pid_t victim = p->rank(c.rank), other = p->rank(1);
    ASSERT_TRUE(victim > 0 && other > 0);
    const auto begin = std::chrono::steady_clock::now();
    kill(victim, SIGKILL);
    if (other != victim) kill(other, SIGCONT);
    const Outcome o = p->wait(seconds(20));
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::cout << "SIGKILL of a rank to the end: " << took << " s\n";
    EXPECT_LT(took, 5);
    EXPECT_EQ(o.code, 4) << o;
    ASSERT_EQ(lines_of(o.err).size(), 1u) << o;
    EXPECT_TRUE(o.err.starts_with("trireme: error: rank " + std::to_string(c.rank) + ": ")) << o;
    EXPECT_NE(o.err.find("signal 9"), std::string::npos) << o;
    EXPECT_NE(o.err.find("the same command resumes"), std::string::npos) << o;
    EXPECT_TRUE(p->none_left());
    EXPECT_EQ(checkpoint_steps(dir() / c.out), c.kept);
    expect_resumes_to_the_same_end(c.out);
  }
}

// SIGKILL at any moment, of any process of the job, again and again until the run is through. TRIREME_LONG=1: a
// hundred times.
TEST_F(Interrupt, KilledAtRandomMoments) {
  const int kills = std::getenv("TRIREME_LONG") ? 100 : 3;
  std::mt19937 random(20);
  std::vector<double> took;
  int complete = 0;
  for (int killed = 0; killed < kills && !HasFailure();) {
    Program p(train("random"), {dir()});
    const auto moment = std::chrono::steady_clock::now() + whole_took_ * (double(random() % 1000) / 1000);
    wait_until([&] { return p.ended() || std::chrono::steady_clock::now() > moment; }, seconds(60));
    const unsigned who = random() % 4;
    pid_t victim = who < 2 ? p.rank(int(who)) : 0;  // or mpirun, or the parent
    if (who == 2)
      for (const pid_t q : p.processes())
        if (read_text("/proc/" + std::to_string(q) + "/comm") == "mpirun\n") victim = q;
    if (victim == 0) victim = p.pid();
    if (p.ended()) {
      ++complete;
      expect_resumes_to_the_same_end("random");
      fs::remove_all(dir() / "random");
      continue;
    }
    SCOPED_TRACE("kill " + std::to_string(killed) + " of " + (who < 2 ? "a rank" : who == 2 ? "mpirun" : "the parent"));
    ++killed;
    const auto begin = std::chrono::steady_clock::now();
    kill(victim, SIGKILL);
    const Outcome o = p.wait(seconds(20));
    EXPECT_TRUE(wait_until([&] { return p.processes().empty(); }, seconds(10)));
    took.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    EXPECT_LT(took.back(), 5) << o;
    const int expected = victim == p.pid() ? 128 + SIGKILL : 4;
    EXPECT_TRUE(o.code == 0 || o.code == expected) << o;
    EXPECT_LE(o.errors().size(), 1u) << o;
  }
  expect_resumes_to_the_same_end("random");
  std::sort(took.begin(), took.end());
  std::cout << took.size() << " SIGKILLs, " << complete
            << " runs completed in between; kill to the end of all processes: median " << took[took.size() / 2]
            << " s, largest " << took.back() << " s\n";
}

TEST_F(Interrupt, KilledParentTakesItsRanksAlong) {
  const auto p = freeze_at(logged_step(9), train("parent"));
  ASSERT_TRUE(p);
  p->signal(SIGKILL);
  p->signal_rank(1, SIGCONT);  // if it is still there
  EXPECT_EQ(p->wait().code, 128 + SIGKILL);
  EXPECT_TRUE(p->none_left());
  expect_resumes_to_the_same_end("parent");
}

TEST_F(Interrupt, CompleteRunSaysSo) {
  const auto before = listing(dir() / "whole");
  const Outcome o = run_program(train("whole", {"log_every=3", "threads=2"}), {dir()});
  EXPECT_EQ(o.code, 0) << o;
  EXPECT_LT(o.seconds, 10);
  EXPECT_NE(o.out.find("the run is complete"), std::string::npos) << o;
  EXPECT_NE(o.out.find("\ndone: step=30 loss="), std::string::npos) << o;
  EXPECT_NE(o.out.find(" run=whole\n"), std::string::npos) << o;
  EXPECT_EQ(listing(dir() / "whole"), before) << "a finished run stays as it is";
}

// A run folder as people type it.
TEST_F(Interrupt, FreshRenamesHoweverTheFolderIsTyped) {
  const auto start = [](const std::string& out) {
    return run_program({"train", "e.yaml", "--fresh", "--out", out}, {dir()});
  };
  fs::create_directory_symlink("typed", dir() / "link");
  int n = 0;
  for (const char* out : {"typed", "typed/", "./typed/.", "link"}) {
    const Outcome o = start(out);
    EXPECT_EQ(o.code, 0) << out << ": " << o;
    EXPECT_TRUE(fs::exists(dir() / "typed/report.html")) << out;
    EXPECT_EQ(fs::exists(dir() / ("typed.old-" + std::to_string(n))), n > 0) << out;
    ++n;
  }
  EXPECT_TRUE(fs::is_symlink(dir() / "link"));
  for (const std::string& out : {std::string("."), dir().string()}) {
    const Outcome here = start(out);
    EXPECT_EQ(here.code, 2) << out << ": " << here;
    EXPECT_NE(here.err.find("the folder that you are in"), std::string::npos) << here;
  }
  EXPECT_TRUE(fs::exists(dir() / "e.yaml"));
}

// env.json and config.resolved.yaml keep the first start and tell what a resume changed.
TEST_F(Interrupt, ResumesAreAppended) {
  const auto train_alone = [](const Words& more) {
    Words words{"train", "e.yaml", "checkpoint.every=2", "--out", "again"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  ASSERT_EQ(signal_alone(train_alone({}), SIGTERM).code, 85);
  const std::string config = read_text(dir() / "again/config.resolved.yaml");
  const auto environment = nlohmann::json::parse(read_text(dir() / "again/env.json"));
  EXPECT_FALSE(environment.contains("resumes"));
  const auto at = checkpoint_steps(dir() / "again").back();
  // What a killed process was replacing goes, what only looks like it stays.
  const Words gone{"report.html.tmp-123", "config.resolved.yaml.tmp-4"},
      kept{"notes.tmp-2024", "report.html.tmp-", "report.html.tmp-x", ".tmp-1", "ckpt/report.html.tmp-123"};
  for (const auto* names : {&gone, &kept})
    for (const auto& name : *names) std::ofstream(dir() / "again" / name) << "half";
  ASSERT_EQ(run_program(train_alone({"checkpoint.every=3", "log_every=2", "--ranks", "2"}), {dir()}).code, 0);
  for (const auto& name : gone) EXPECT_FALSE(fs::exists(dir() / "again" / name)) << name;
  for (const auto& name : kept) EXPECT_TRUE(fs::exists(dir() / "again" / name)) << name;
  auto after = nlohmann::json::parse(read_text(dir() / "again/env.json"));
  ASSERT_EQ(after["resumes"].size(), 1u) << after;
  EXPECT_EQ(after["resumes"][0]["step"], at);
  EXPECT_EQ(after["resumes"][0]["ranks"], 2);
  EXPECT_TRUE(after["resumes"][0].contains("date"));
  EXPECT_FALSE(after["resumes"][0].contains("cpu")) << "as it was";
  after.erase("resumes");
  EXPECT_EQ(after, environment);
  const std::string now = read_text(dir() / "again/config.resolved.yaml");
  ASSERT_TRUE(now.starts_with(config));
  const Words added = lines_of(now.substr(config.size()));
  ASSERT_EQ(added.size(), 1u) << now;
  EXPECT_TRUE(added[0].starts_with("# resumed at step " + std::to_string(at) + ", 20")) << now;
  EXPECT_TRUE(added[0].ends_with(": checkpoint.every: 3, log_every: 2")) << now;
  // It is still a configuration.
  EXPECT_EQ(run_program({"train", "again/config.resolved.yaml", "--print-config"}, {dir()}).code, 0);
}

// The second of two jobs in one folder is refused before it touches anything there, whatever it was told to do.
TEST_F(Interrupt, ASecondJobInTheFolderIsRefused) {
  Program p(train("shared"), {dir(), stopping_at("shared/ckpt/step_00000008/")});
  const pid_t rank0 = await_stopped(p);  // nobody has anything to write meanwhile
  ASSERT_TRUE(rank0 != 0 && rank0 == p.rank(0));
  const auto before = listing(dir() / "shared");
  const auto lock = dir() / "shared/.lock";
  const std::string holder = "process " + std::to_string(rank0) + " on ";
  EXPECT_TRUE(read_text(lock).starts_with(holder)) << read_text(lock);
  const Words alone{"train", "e.yaml", "--out", "shared"};
  for (const Words& words : {train("./shared/"), train("shared", {"--fresh"}), train("shared", {"steps=9"}), alone}) {
    const Outcome o = run_program(words, {dir()});
    EXPECT_EQ(o.code, 2) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_NE(o.err.find("is in use by " + holder), std::string::npos) << o;
    EXPECT_EQ(listing(dir() / "shared"), before);
  }
  EXPECT_EQ(run_program({"report", "shared", "--out", "shared.html"}, {dir()}).code, 0) << "readers need no lock";
  // Killed, it holds nothing any more, and the next start needs no help: not even to wait until all ranks are gone.
  EXPECT_TRUE(p.signal_rank(1, SIGSTOP));
  kill(rank0, SIGCONT);
  p.signal(SIGKILL);
  const Outcome o = run_program(train("shared"), {dir()});
  EXPECT_EQ(o.code, 0) << o;
  const auto said = [&](const char* words) { return o.out.find(words) != std::string::npos; };
  EXPECT_TRUE(said("resumed at step ") || said("the run is complete")) << o;  // ranks that live on may reach the end
  EXPECT_EQ(final_state(dir() / "shared"), final_state(dir() / "whole"));
  EXPECT_EQ(logged(dir() / "shared"), logged(dir() / "whole"));
  EXPECT_FALSE(fs::exists(lock));
}

// What the program prints must not land in a file that it opens: descriptors 0 to 2 are closed.
TEST_F(Interrupt, WithoutStandardStreams) {
  const Words launcher{"sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"};
  for (const Words& ranks : {Words{}, Words{"--ranks", "2"}}) {
    Words words{"train", "e.yaml", "steps=4", "--out", "silent" + std::to_string(ranks.size())};
    words.insert(words.end(), ranks.begin(), ranks.end());
    ASSERT_EQ(run_program(words, {dir(), {}, launcher}).code, 0);
    const Words lines = lines_of(read_text(dir() / words[4] / "metrics.jsonl"));
    EXPECT_EQ(lines.size(), 5u) << "4 steps and an evaluation";
    for (const auto& line : lines) EXPECT_TRUE(nlohmann::json::accept(line)) << line;
    EXPECT_EQ(run_program(words, {dir()}).code, 0);
  }
}

}  // namespace
}  // namespace trireme::test

// links: comm
// The parent of `--ranks`, and every command that starts ranks: signals, readers that go away, and what is seen on a
// terminal.
#include "tests/fault/experiment.h"

#include <algorithm>

#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>

namespace trireme::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Launch : public ::testing::Test {
 protected:
  Launch() {
    write_text(dir() / "e.yaml",
               "recipe: mlp\nsizes: [32, 64, 10]\nsamples: 480\nbatch_size: 24\nsteps: 1000000\nthreads: 1\n"
               "log_every: 1\neval_every: 0\ncheckpoint: {every: 1000000}\n");
    write_text(dir() / "talk.yaml",
               "recipe: faulty\nsteps: 300\nbatch_size: 48\nthreads: 1\nlog_every: 5\nprefetch: false\nwork_ms: 5\n"
               "checkpoint: {every: 0}\nfault: {kind: talk, rank: 1}\n");
  }
  fs::path dir() const { return folder_.path; }
  static Words train(const std::string& out, int ranks, const Words& more = {}) {
    Words words{"train", "e.yaml", "--out", out, "--ranks", std::to_string(ranks)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static std::string faulty_program() {
    const char* path = std::getenv("TRIREME_FAULTY");
    return path ? path : fs::path(program_path()).parent_path() / "trireme_faulty";
  }
  bool steps_were_taken(Program& p, const std::string& out) const {
    return wait_until([&] { return !read_text(dir() / out / "metrics.jsonl").empty() || p.ended(); }) && !p.ended();
  }
  bool saved(const std::string& out) const {
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(dir() / out / "ckpt", none))
      if (entry.path().filename().string().starts_with("step_") && fs::exists(entry.path() / "manifest.json"))
        return true;
    return false;
  }
  void expect_stopped(Program& p, const std::string& out) const {
    const Outcome o = p.wait(seconds(20));
    EXPECT_EQ(o.code, 85) << o;
    EXPECT_EQ(o.err, "") << o;
    EXPECT_TRUE(saved(out)) << o;
    EXPECT_TRUE(p.none_left());
  }

  TempFolder folder_;
};

TEST_F(Launch, EverySignalThatAsksForAStop) {
  for (const auto& [s, ranks] :
       {std::pair{SIGUSR1, 1}, {SIGUSR1, 2}, {SIGUSR2, 2}, {SIGHUP, 1}, {SIGHUP, 2}, {SIGTERM, 2}}) {
    SCOPED_TRACE(std::string(strsignal(s)) + ", ranks " + std::to_string(ranks));
    const std::string out = "stop" + std::to_string(s) + "." + std::to_string(ranks);
    Program p(train(out, ranks), {dir()});
    ASSERT_TRUE(steps_were_taken(p, out)) << p.wait();
    kill(-p.pid(), s);  // its whole process group, as a shell does
    expect_stopped(p, out);
  }
}

// Batch systems repeat their warning, and send SIGHUP after another signal: that is not a user who insists.
TEST_F(Launch, AWarningMayBeRepeated) {
  for (const int ranks : {1, 2}) {
    const std::string out = "again" + std::to_string(ranks);
    Program p(train(out, ranks), {dir()});
    ASSERT_TRUE(steps_were_taken(p, out)) << p.wait();
    for (const int s : {SIGUSR1, SIGUSR1, SIGHUP}) p.signal(s);
    expect_stopped(p, out);
  }
}

TEST_F(Launch, AWarningWhileTheRanksStart) {
  Program p(train("start", 2), {dir()});
  ASSERT_TRUE(wait_until([&] { return p.processes().size() > 1 || p.ended(); }));
  p.signal(SIGUSR1);
  expect_stopped(p, "start");
}

TEST_F(Launch, UnderNohupAHangupIsNothing) {
  for (const int ranks : {1, 2}) {
    const std::string out = "nohup" + std::to_string(ranks);
    Program p(train(out, ranks), {dir(), {}, {"nohup"}});
    ASSERT_TRUE(steps_were_taken(p, out)) << p.wait();
    p.signal(SIGHUP);
    std::this_thread::sleep_for(milliseconds(700));
    ASSERT_FALSE(p.ended()) << p.wait();
    p.signal(SIGTERM);
    EXPECT_EQ(p.wait(seconds(20)).code, 85);
    EXPECT_TRUE(saved(out));
  }
}

// `trireme train ... | head`: who reads goes away, the training does not.
TEST_F(Launch, AClosedPipeEndsNothing) {
  for (const char* piped : {"\"$@\" 2>&1 | true", "\"$@\" 2>/dev/null | head -n 1 >/dev/null"})
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(std::string(piped) + ", ranks " + std::to_string(ranks));
      const std::string out = "run";
      const std::string script = "set -o pipefail; " + std::string(piped);
      const Outcome o =
          run_program(train(out, ranks, {"steps=60", "--fresh"}), {dir(), {}, {"bash", "-c", script, "-"}});
      EXPECT_EQ(o.code, 0) << o;
      EXPECT_TRUE(fs::exists(dir() / out / "ckpt/step_00000060/manifest.json")) << o;
      EXPECT_TRUE(fs::exists(dir() / out / "report.html")) << o;
    }
  // Other commands are not ended by it either, half way through what they write.
  const bool pairs = missing_for_pairs().empty();
  if (pairs) draw_pictures(dir() / "pictures", 1, 20);
  for (const auto& [words, file] :
       {std::pair<Words, std::string>{{"report", "run", "--out", "r.html"}, "r.html"},
        {{"data", "folder", "--from", "pictures", "--size", "16", "--out", "d.h5"}, "d.h5"}}) {
    if (words[0] == "data" && !pairs) continue;
    const Outcome o = run_program(words, {dir(), {}, {"bash", "-c", "set -o pipefail; \"$@\" 2>&1 | true", "-"}});
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_TRUE(fs::exists(dir() / file)) << o;
  }
}

// A full disk behind stdout: training goes on and says it once; a command whose output it was fails.
TEST_F(Launch, AFullDiskBehindStdout) {
  for (const int ranks : {1, 2}) {
    const Outcome o = run_program(train("run", ranks, {"steps=60", "--fresh"}),
                                  {dir(), {}, {"bash", "-c", "\"$@\" >/dev/full", "-"}});
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_TRUE(fs::exists(dir() / "run/ckpt/step_00000060/manifest.json")) << o;
    ASSERT_EQ(lines_of(o.err).size(), 1u) << o;
    EXPECT_TRUE(o.err.starts_with("trireme: warning: stdout: ")) << o;
  }
  const Outcome o = run_program({"submit", "e.yaml", "--print"}, {dir(), {}, {"bash", "-c", "\"$@\" >/dev/full", "-"}});
  EXPECT_EQ(o.code, 3) << o;
  ASSERT_EQ(o.errors().size(), 1u) << o;
  EXPECT_NE(o.err.find("stdout"), std::string::npos) << o;
}

// Of stderr only what mpirun itself says is kept back.
TEST_F(Launch, LinesOfDashesPass) {
  Program p({"train", "talk.yaml", "--out", "talk", "--ranks", "2", "steps=1000000"},
            {dir(), {}, {}, faulty_program()});
  ASSERT_TRUE(steps_were_taken(p, "talk")) << p.wait();
  ASSERT_TRUE(wait_until([&] { return p.said().find("my clock\n") != std::string::npos; })) << p.wait();
  ASSERT_TRUE(p.signal_rank(1, SIGKILL));  // mpirun has a banner for that, after the odd rule
  const Outcome o = p.wait(seconds(20));
  EXPECT_EQ(o.code, 4) << o;
  const std::string rule(74, '-');
  Words lines = lines_of(o.err);
  ASSERT_EQ(lines.size(), 7u) << o;
  EXPECT_TRUE(lines.back().starts_with("trireme: error: rank 1: was lost: killed by signal 9")) << o;
  lines.pop_back();
  EXPECT_EQ(lines, (Words{rule, "my table", rule, "mpirun started me", "[12:34] my clock", rule}));
}

// What a command writes to a terminal of 100 columns, as it is (\n stays \n). Once a bar has shown a loss it has 60: what
// comes after `narrow` bytes is written then.
std::string on_terminal(const Words& words, const fs::path& folder, int& code, std::size_t& narrow) {
  termios plain{};
  plain.c_cflag = CS8 | CREAD;
  winsize size{30, 100, 0, 0};
  int screen = -1;
  std::vector<char*> argv;
  for (const auto& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  const pid_t child = forkpty(&screen, nullptr, &plain, &size);
  if (child == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    if (chdir(folder.c_str()) == 0) execvp(argv[0], argv.data());
    _exit(127);
  }
  std::string bytes;
  const auto read_within = [&](int ms) {
    char part[4096];
    pollfd p{screen, POLLIN, 0};
    const ssize_t n = poll(&p, 1, ms) > 0 ? read(screen, part, sizeof part) : 0;
    if (n > 0) bytes.append(part, std::size_t(n));
    return n > 0;
  };
  while (read_within(60000)) {
    if (narrow || bytes.find("loss ") == std::string::npos) continue;
    kill(child, SIGSTOP);
    while (read_within(300)) continue;  // what it had written
    narrow = bytes.size();
    size.ws_col = 60;
    ioctl(screen, TIOCSWINSZ, &size);
    kill(child, SIGCONT);
  }
  int status = 0;
  waitpid(child, &status, 0);
  close(screen);
  code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return bytes;
}

TEST_F(Launch, OnATerminalLinesAndBarStandApart) {
  int code = -1;
  std::size_t narrow = 0;
  const std::string bytes =
      on_terminal({faulty_program(), "train", "talk.yaml", "--out", "bar", "--ranks", "2"}, dir(), code, narrow);
  EXPECT_EQ(code, 0) << bytes;
  // `\r bar ESC[K` draws, `\r ESC[K` clears. Columns: after a bar nothing but \r or \n; no \r over an unfinished line.
  int bars = 0, late_bars = 0;
  std::string line;
  Words lines;
  bool bar = false;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\r') {
      EXPECT_EQ(line, "") << "a bar over an unfinished line";
      const auto end = bytes.find("\x1b[K", i);
      ASSERT_NE(end, std::string::npos) << bytes.substr(i);
      const std::string shown = bytes.substr(i + 1, end - i - 1);
      EXPECT_EQ(shown.find_first_of("\r\n"), std::string::npos) << shown;
      bar = !shown.empty();
      const auto columns = std::count_if(shown.begin(), shown.end(), [](char c) { return (c & 0xc0) != 0x80; });
      const bool late = narrow && i > narrow + 500;  // one bar may have been under way
      EXPECT_LT(columns, late ? 60 : 100) << "wraps";
      bars += bar;
      late_bars += bar && late;
      i = end + 2;
    } else if (bytes[i] == '\n') {
      if (!bar) lines.push_back(line);
      line.clear();
      bar = false;
    } else {
      ASSERT_FALSE(bar) << "glued to a bar: " << bytes.substr(i > 120 ? i - 120 : 0, 200);
      line += bytes[i];
    }
  }
  EXPECT_GT(bars, 3) << bytes;
  EXPECT_GT(late_bars, 0) << bytes;
  for (const char* whole : {"my table", "mpirun started me", "[12:34] my clock"})
    EXPECT_EQ(std::count(lines.begin(), lines.end(), whole), 1) << whole << "\n" << bytes;
  ASSERT_FALSE(lines.empty()) << bytes;
  EXPECT_TRUE(lines.back().starts_with("done: step=300")) << bytes;
}

// A benchmark ends its arms, and takes its scratch folder along.
TEST_F(Launch, ABenchmarkCanBeStopped) {
  for (const int s : {SIGTERM, SIGUSR1}) {
    SCOPED_TRACE(strsignal(s));
    fs::create_directories(dir() / "tmp");
    Program p({"bench", "ddp_step", "--blocks", "1000"}, {dir(), {"TMPDIR=" + (dir() / "tmp").string()}});
    ASSERT_TRUE(wait_until([&] { return p.processes().size() > 1 || p.ended(); }));
    std::this_thread::sleep_for(milliseconds(300));
    p.signal(s);
    const Outcome o = p.wait(seconds(20));
    EXPECT_EQ(o.code, 130) << o;
    EXPECT_LT(p.seconds_from_signal, 5) << o;
    EXPECT_TRUE(p.none_left());
    for (const auto& entry : fs::directory_iterator(dir() / "tmp"))
      EXPECT_FALSE(entry.path().filename().string().starts_with("trireme-bench")) << entry.path();
  }
}

}  // namespace
}  // namespace trireme::test

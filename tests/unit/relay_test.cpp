// How a process was started, told from its environment; and what becomes of bytes that ranks print.
#include "trainers/relay.h"

#include "trainers/launch.h"

#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>

namespace trireme {
namespace {

using Environment = std::map<std::string, std::string>;

struct Start {
  const char* what;
  Environment environment;
  int ranks, rank, alone;  // launched_ranks(), launched_rank(), tasks_alone()
};

const std::vector<Start> starts{
    {"a shell", {}, 0, 0, 0},
    {"mpirun", {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}}, 4, 3, 0},
    {"mpirun -n 1", {{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}}, 1, 0, 0},
    {"mpiexec of MPICH", {{"PMI_SIZE", "4"}, {"PMI_RANK", "2"}}, 4, 2, 0},
    {"mpiexec of MPICH -n 1", {{"PMI_SIZE", "1"}, {"PMI_RANK", "0"}}, 0, 0, 0},
    {"sbatch's script, salloc's shell", {{"SLURM_NTASKS", "4"}, {"SLURM_NPROCS", "4"}, {"SLURM_JOB_ID", "7"}}, 0, 0, 0},
    {"sbatch's script, with its own task", {{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}, 0, 0, 0},
    {"salloc with an interactive step",
     {{"SLURM_NTASKS", "4"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}},
     0,
     0,
     0},
    {"srun --pty bash, PMI-2",
     {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"PMI_SIZE", "1"}, {"PMI_RANK", "0"}, {"PMI_FD", "9"}},
     0,
     0,
     0},
    {"srun --pty bash, PMIx", {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"PMIX_RANK", "0"}}, 0, 0, 0},
    {"mpirun in that shell",
     {{"SLURM_STEP_NUM_TASKS", "1"},
      {"SLURM_PROCID", "0"},
      {"PMI_SIZE", "1"},
      {"PMI_RANK", "0"},
      {"OMPI_COMM_WORLD_SIZE", "2"},
      {"OMPI_COMM_WORLD_RANK", "1"}},
     2,
     1,
     0},
    {"srun --mpi=none in that shell",
     {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}, {"PMI_SIZE", "1"}, {"PMI_RANK", "0"}},
     4,
     3,
     4},
    {"srun --mpi=none in a shell of PMIx",
     {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}, {"PMIX_RANK", "0"}},
     4,
     3,
     4},
    {"srun --mpi=pmix", {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}, {"PMIX_RANK", "3"}}, 4, 3, 0},
    {"srun --mpi=pmi2",
     {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}, {"PMI_RANK", "3"}, {"PMI_SIZE", "4"}},
     4,
     3,
     0},
    {"srun --mpi=none", {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}}, 4, 3, 4},
    {"srun -n 1", {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}}, 0, 0, 0},
};

TEST(LaunchedRanks, EveryWayToBeStarted) {
  const std::vector<std::string> names{"OMPI_COMM_WORLD_SIZE",
                                       "OMPI_COMM_WORLD_RANK",
                                       "PMI_SIZE",
                                       "PMI_RANK",
                                       "PMI_FD",
                                       "PMIX_RANK",
                                       "SLURM_NTASKS",
                                       "SLURM_NPROCS",
                                       "SLURM_STEP_NUM_TASKS",
                                       "SLURM_PROCID",
                                       "SLURM_JOB_ID"};
  Environment before;
  for (const auto& n : names)
    if (const char* value = std::getenv(n.c_str())) before[n] = value;
  const auto set = [&](const Environment& e) {
    for (const auto& n : names) unsetenv(n.c_str());
    for (const auto& [name, value] : e) setenv(name.c_str(), value.c_str(), 1);
  };
  for (const auto& s : starts) {
    SCOPED_TRACE(s.what);
    set(s.environment);
    EXPECT_EQ(launched_ranks(), s.ranks);
    EXPECT_EQ(launched_rank(), s.rank);
    EXPECT_EQ(tasks_alone(), s.alone);
  }
  set(before);
}

// What arrives on stdout and stderr, both in one file, as a terminal that shows both would get it.
std::string shown(const std::function<void(Relay&)>& work, bool terminal, const Relay** kept = nullptr) {
  static std::unique_ptr<Relay> relay;
  relay = std::make_unique<Relay>(terminal, terminal);
  if (kept) *kept = relay.get();
  const int file = memfd_create("shown", MFD_CLOEXEC), out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
  std::fflush(nullptr);
  dup2(file, STDOUT_FILENO);
  dup2(file, STDERR_FILENO);
  work(*relay);
  relay->finish();
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  std::ifstream in("/proc/self/fd/" + std::to_string(file), std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  for (const int fd : {file, out, err}) close(fd);
  return text;
}

const std::string rule = std::string(74, '-') + "\n";

// However the bytes are cut.
void expect_err(const std::string& sent, const std::string& expected, bool terminal = false) {
  for (const std::size_t cut : {std::size_t(1), std::size_t(7), sent.size()})
    EXPECT_EQ(shown(
                  [&](Relay& r) {
                    for (std::size_t at = 0; at < sent.size(); at += cut) r.err(std::string_view(sent).substr(at, cut));
                  },
                  terminal),
              expected)
        << "in pieces of " << cut;
}

TEST(Relay, OnlyWhatMpirunSaysIsKeptBack) {
  const std::string
      aborted = rule +
                "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n"
                "with errorcode 5.\n\nYou may or may not see output from other processes.\n" +
                rule,
      lost = rule + "mpirun noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed).\n" + rule,
      again =
          "[n:123] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n"
          "[n:123] Set MCA parameter \"orte_base_help_aggregate\" to 0 to see all help / error messages\n",
      crash =
          "[n:5] *** Process received signal ***\n[n:5] Signal: Segmentation fault (11)\n"
          "[n:5] [ 0] /lib/libc.so(+0x1)[0x2]\n[n:5] *** End of error message ***\n",
      forward = "mpirun: Forwarding signal 10 to job\n";
  expect_err(aborted + lost + again + crash + forward + "trireme: ready\n", "");
  for (const std::string& mine :
       {rule + "my table\n" + rule, rule, rule + rule + rule, std::string(80, '-') + "\n", "-----\n" + rule + "x\n",
        std::string("mpirun is what I run\n"), std::string("[12:34] by my clock\n"),
        std::string("[rank:3] [info] hello\n"), std::string("[n:5] loaded\n"), std::string("[rank:3] *** note ***\n"),
        rule + "mpirun started me\n" + rule, std::string("[gpu:0] [1] x\n"), std::string("no end"), rule + "no end",
        std::string("a\r\nb\r\n"), std::string(" 10 %\r 20 %\r\n"), std::string("\r1/3\r2/3\r3/3\n"),
        std::string("\n\n")}) {
    expect_err(mine, mine);
    if (mine.ends_with("\n")) expect_err(mine + aborted + mine + lost + again + mine, mine + mine + mine);
  }
}

TEST(Relay, BannersAreRead) {
  const Relay* r = nullptr;
  shown(
      [](Relay& relay) {
        relay.err(rule + rule +
                  "mpirun noticed that process rank 3 with PID 0 on node n exited on signal 9 (Killed).\n" + rule +
                  "trireme: ready\ntrireme: ready\n");
      },
      false, &r);
  EXPECT_EQ(r->lost_rank(), 3);
  EXPECT_EQ(r->lost_why(), "killed by signal 9 (Killed)");
  EXPECT_EQ(r->ready_ranks(), 2);
  EXPECT_FALSE(r->error_seen());
}

// One that is too busy to end in time is ended; a rank had told it the code.
TEST(Relay, ALateMpirunKeepsTheCode) {
  const std::string error = "trireme: error: shard 3: is truncated\n",
                    banner = rule +
                             "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\nwith errorcode 3.\n" +
                             rule;
  for (const auto& [said, expected] : {std::pair{error + banner, 3}, {error, 4}}) {
    int code = 0;
    const std::string text = shown(
        [&](Relay&) {
          code = launch_command(2, {"sh", "-c", "trap '' TERM; printf %s \"$0\" >&2; exec sleep 60", said});
        },
        false);
    EXPECT_EQ(code, expected);
    EXPECT_EQ(text, error);
  }
}

TEST(Relay, AnErrorThatAllRanksShareIsToldOnce) {
  expect_err("trireme: error: a: b\ntrireme: error: c: d\ntrireme: error: a: b\n",
             "trireme: error: a: b\ntrireme: error: c: d\n");
  // What a rank finds that was stopped and wakes as the job ends; alone it is what happened.
  const std::string gone = "trireme: error: collective 1: rank 0: gone (its process has ended)\n";
  expect_err("trireme: error: a: b\n" + gone, "trireme: error: a: b\n");
  expect_err(gone, gone);
}

// What might become mpirun's is not held back for long.
TEST(Relay, WaitsForNothing) {
  std::string before;
  shown(
      [&](Relay& r) {
        r.err(rule);
        r.idle();
        before = std::to_string(lseek(STDERR_FILENO, 0, SEEK_CUR));
      },
      false);
  EXPECT_EQ(before, "75");
}

// Lines take the bar from the screen and put it back, on whichever way and in whichever order they arrive.
TEST(Relay, TheBarStandsBelowTheLines) {
  const std::string clear = "\r\x1b[K", bar = "\r10% ### step 1" + clear.substr(1),
                    next = "\r20% ### step 2" + clear.substr(1);
  expect_err(bar + next + "\n", bar + next + "\n", true);
  expect_err(bar + "warning\n" + next, bar + clear + "warning\n" + bar + next + "\n", true);
  expect_err(bar + clear + "warning\n", bar + clear + "warning\n", true);
  expect_err(bar + "trireme: error: a\n", bar + "\ntrireme: error: a\n", true);
  // Rank 0 clears, prints on stdout and draws again: what mpirun delivers late or early does not matter.
  const auto late = shown([&](Relay& r) { r.err(bar), r.err(clear + next), r.out("eval\n"); }, true);
  EXPECT_EQ(late, bar + clear + next + clear + "eval\n" + next + "\n");
  const auto early = shown(
      [&](Relay& r) { r.err(bar), r.out("ev"), r.out("al\nmo"), r.err(clear), r.err(next), r.out("re\n"); }, true);
  EXPECT_EQ(early, bar + clear + "eval\n" + bar + clear + next + clear + "more\n" + next + "\n");
  // Not a terminal: nothing is added.
  EXPECT_EQ(shown([&](Relay& r) { r.out("a"), r.err("b\n"), r.out("c\n"); }, false), "ab\nc\n");
}

// A block of lines is a bar too, and whoever draws it takes its own lines from the screen.
TEST(Relay, ABarMayHaveLines) {
  const std::string end = "\x1b[K",
                    next =
                        "\x1b"
                        "E",
                    up = "\r\x1b[1A\x1b[J", clear = "\r" + end;
  const std::string table = "\rhead" + next + "a 1" + end, later = "\rhead" + next + "a 2" + next + "b 1" + end;
  const auto drawn = [&](const std::string& takes, const std::string& t) { return "\r" + takes + t.substr(1); };
  const std::string first = drawn("\x1b[J", table), second = drawn("\x1b[1A\x1b[J", later);
  expect_err(first + second + "\n", table + up + later + "\n", true);
  expect_err(first + "warning\n" + second, table + up + "warning\n" + table + up + later + "\n", true);
  const std::string away = "\r\x1b[2A\x1b[J" + end;  // of the three lines
  expect_err(first + second + away + "done\n", table + up + later + "\r\x1b[2A\x1b[J" + clear + "done\n", true);
  const std::string bar = "\r10% a long one" + end;  // of which nothing stays beside the block
  expect_err(bar + first + "\n", bar + clear + table + "\n", true);
}

// Stderr as a terminal of 80 columns; what it was sent.
std::string on_terminal(int rows, const std::function<void(int screen)>& work) {
  winsize size{};
  size.ws_row = static_cast<unsigned short>(rows), size.ws_col = 80;
  termios plain{};
  plain.c_cflag = CS8 | CREAD;
  int screen = -1, terminal = -1;
  if (openpty(&screen, &terminal, nullptr, &plain, &size) != 0) return "no terminal";
  const int err = dup(STDERR_FILENO);
  dup2(terminal, STDERR_FILENO);
  work(screen);
  dup2(err, STDERR_FILENO);
  std::string text;
  char some[4096];
  pollfd sent{screen, POLLIN, 0};
  while (poll(&sent, 1, 500) > 0 && (sent.revents & POLLIN)) {  // what was written comes in pieces
    const ssize_t n = read(screen, some, sizeof some);
    if (n <= 0) break;
    text.append(some, std::size_t(n));
  }
  for (const int fd : {err, terminal, screen}) close(fd);
  return text;
}

TEST(Relay, RanksHearOfTheTerminalsSize) {
  const std::string text = on_terminal(24, [](int) {
    EXPECT_EQ(launch_command(1, {"sh", "-c", "printf %s: \"$TRIREME_TERMINAL\" >&2"}), 0);
  });
  EXPECT_EQ(text, "80x24:");
}

// A window that became lower has lost a bar's first lines: only those are taken back that were drawn anew.
TEST(Relay, ABarIsAsHighAsItWasDrawnLast) {
  const std::string text = on_terminal(40, [](int screen) {
    std::string table = "\rhead";
    for (int line = 1; line < 20; ++line) table += "\x1b" + ("Eline " + std::to_string(line));
    Relay relay(false, true);
    relay.err(table + "\x1b[K");
    winsize lower{};
    lower.ws_row = 10, lower.ws_col = 80;
    ioctl(screen, TIOCSWINSZ, &lower);
    relay.err("warning\n\r\x1b[19A\x1b[Jdone\x1b[K");
    relay.finish();
  });
  const auto at = text.find("warning\n");
  ASSERT_NE(at, std::string::npos) << text;
  EXPECT_TRUE(text.substr(0, at).ends_with("\r\x1b[19A\x1b[J")) << text;
  EXPECT_TRUE(text.ends_with("line 8\x1b[K\r\x1b[8A\x1b[J\rdone\x1b[K\n")) << text;
}

}  // namespace
}  // namespace trireme

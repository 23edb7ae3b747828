#include "trainers/launch.h"

#include "comm/error.h"
#include "trainers/relay.h"
#include "trainers/stop.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace trireme {
namespace {

constexpr const char* launched_by_us = "TRIREME_LAUNCHED";
// From the first error of a rank, or the request to end, to the end of mpirun.
constexpr std::chrono::milliseconds mpirun_patience{3000};
// SIGUSR1 kills a rank that does not catch it yet: so long it is held back. (Ranks on other nodes may not be heard.)
constexpr std::chrono::seconds start_patience{10};

// How this process was started: its rank, of how many, and whether anything connects them.
struct Launched {
  int rank = 0, ranks = 0;  // 0 ranks: alone
  bool connected = true;
};

bool is_set(const char* name) { return std::getenv(name) != nullptr; }
int number(const char* name) { return is_set(name) ? std::max(0, std::atoi(std::getenv(name))) : 0; }

Launched launched() {
  if (is_set("OMPI_COMM_WORLD_SIZE"))
    return {number("OMPI_COMM_WORLD_RANK"), std::max(1, number("OMPI_COMM_WORLD_SIZE"))};
  // A step of one task is a shell or a batch system's wrapper as often as a job of one rank, and one rank needs nobody:
  // such a process is alone. What it hands down says nothing about the tasks of a step that is started from it.
  if (number("PMI_SIZE") > 1) return {number("PMI_RANK"), number("PMI_SIZE")};
  const int tasks = number("SLURM_STEP_NUM_TASKS"), task = number("SLURM_PROCID");
  if (tasks < 2) return {};
  const bool pmix = is_set("PMIX_RANK") && number("PMIX_RANK") == task;
  return {task, tasks, pmix || (is_set("PMI_RANK") && !is_set("PMI_SIZE"))};
}

// What is left of the job when mpirun is gone: its ranks are then children of this process (a subreaper).
void end_leftovers() {
  for (int round = 0; round < 100; ++round) {
    std::ifstream children("/proc/self/task/" + std::to_string(gettid()) + "/children");
    bool any = false;
    for (pid_t p = 0; children >> p; any = true) kill(p, SIGKILL);
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    if (!any) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

std::string self_path() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

[[noreturn]] void run_starter(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (auto& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  // A terminal's Ctrl-C goes to this parent alone, and mpirun must not outlive it.
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  std::signal(SIGPIPE, SIG_DFL);
  if (geteuid() == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  setenv("HWLOC_HIDE_ERRORS", "2", 0);  // where /sys is not mounted mpirun would complain; it works without
  execvp(argv[0], argv.data());
  _exit(127);
}

// The started job: its pipes, and how it ends.
class Job {
 public:
  Job(int ranks, std::vector<std::string>& command, OnStop on_stop)
      : ranks_(ranks), on_stop_(on_stop), relay_(isatty(STDOUT_FILENO), isatty(STDERR_FILENO)) {
    start(command);
  }

  // Relays until the pipes are closed and the job is gone.
  void run() {
    while (open_ends_ > 0) {
      look_after_starter();
      pass_on_signals();
      const int ready = poll(pipes_, 2, 200);
      if (ready > 0)
        for (auto& p : pipes_) read_some(p);
      else if (ready == 0)
        relay_.idle();
    }
    relay_.finish();
    while (!gone_ && waitpid(starter_, &status_, 0) < 0 && errno == EINTR) {
    }
    if (!gone_) end_leftovers();
  }

  // After run(): the exit code of the whole, or what became of it as an exception.
  int outcome(const std::string& program) const {
    const int code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    if (ended_) return int(ExitCode::killed);
    if (relay_.error_seen() && WIFSIGNALED(status_))  // it was late, which a busy machine makes it
      return relay_.abort_code() ? relay_.abort_code() : int(ExitCode::communication);
    if (code == 0 || code == int(ExitCode::stopped) || relay_.error_seen()) return code;
    if (code == 127 && relay_.lost_rank() < 0 && relay_.first_banner_line().empty())
      throw CommError("--ranks", program + " is not installed or not on PATH",
                      "install openmpi-bin, or start the ranks yourself");
    if (relay_.lost_rank() >= 0)
      throw CommError("rank " + std::to_string(relay_.lost_rank()), "was lost: " + relay_.lost_why(),
                      "the same command resumes from the last checkpoint");
    if (WIFSIGNALED(status_))
      throw CommError("mpirun", std::string("was killed: ") + strsignal(WTERMSIG(status_)),
                      "the same command resumes from the last checkpoint");
    throw CommError("mpirun", "failed with code " + std::to_string(code) + ": " + relay_.first_banner_line());
  }

 private:
  using Clock = std::chrono::steady_clock;

  void start(std::vector<std::string>& command) {
    int out[2], err[2];
    if (pipe(out) != 0 || pipe(err) != 0) throw CommError("--ranks", std::string("no pipe: ") + std::strerror(errno));
    const bool terminal = isatty(STDERR_FILENO);
    starter_ = fork();
    if (starter_ < 0) throw CommError("--ranks", std::string("cannot start a process: ") + std::strerror(errno));
    if (starter_ == 0) {
      if (!terminal) unsetenv("TRIREME_TERMINAL");
      setenv(launched_by_us, "1", 1);
      // The size of the terminal is read before stderr becomes a pipe.
      winsize size{};
      if (terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0)
        setenv("TRIREME_TERMINAL",
               (std::to_string(size.ws_col ? size.ws_col : 80) + "x" + std::to_string(size.ws_row)).c_str(), 1);
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      const int null = open("/dev/null", O_RDONLY);
      dup2(null, STDIN_FILENO);
      for (const int fd : {out[0], out[1], err[0], err[1], null}) close(fd);
      run_starter(command);
    }
    close(out[1]);
    close(err[1]);
    pipes_[0] = {out[0], POLLIN, 0};
    pipes_[1] = {err[0], POLLIN, 0};
  }

  // mpirun takes ranks that do not answer along after a while; if not, it is not waited for. What it leaves behind
  // holds the pipes open.
  void look_after_starter() {
    if (gone_) return;
    const auto now = Clock::now();
    if ((ended_ || relay_.error_seen()) && overdue_ == Clock::time_point()) overdue_ = now + mpirun_patience;
    if (overdue_ != Clock::time_point() && now > overdue_) kill(starter_, SIGKILL);
    if (waitpid(starter_, &status_, WNOHANG) != starter_) return;
    gone_ = true;
    end_leftovers();
  }

  void pass_on_signals() {
    if (!stop_requested() || gone_) return;
    if (requested_ == Clock::time_point()) requested_ = Clock::now();
    const bool heard = relay_.ready_ranks() >= ranks_ || Clock::now() - requested_ > start_patience;
    if (on_stop_ == OnStop::save && heard && !std::exchange(asked_, true)) kill(starter_, SIGUSR1);
    if ((on_stop_ == OnStop::end || stop_insisted()) && !std::exchange(ended_, true)) kill(starter_, SIGTERM);
  }

  void read_some(pollfd& p) {
    if (p.fd < 0 || !(p.revents & (POLLIN | POLLHUP | POLLERR))) return;
    char text[65536];
    const ssize_t n = read(p.fd, text, sizeof text);
    if (n < 0 && errno == EINTR) return;
    if (n > 0) return &p == pipes_ ? relay_.out({text, std::size_t(n)}) : relay_.err({text, std::size_t(n)});
    close(std::exchange(p.fd, -1));
    --open_ends_;
  }

  const int ranks_;
  const OnStop on_stop_;
  Relay relay_;
  pid_t starter_ = -1;
  pollfd pipes_[2]{};  // stdout, stderr
  int open_ends_ = 2, status_ = 0;
  bool asked_ = false, ended_ = false, gone_ = false;
  Clock::time_point requested_, overdue_;
};

}  // namespace

int launched_ranks() { return launched().ranks; }
int ranks_to_start(int asked) {
  const int found = launched_ranks();
  if (found && asked && asked != found)
    throw UsageError("--ranks " + std::to_string(asked),
                     "this job was started with " + std::to_string(found) + " ranks",
                     "leave --ranks out under mpirun and srun");
  return found || asked < 2 ? 0 : asked;
}
int tasks_alone() { return launched().connected ? 0 : launched().ranks; }
int launched_rank() { return launched().rank; }

void announce_ready() {
  if (is_set(launched_by_us)) (void)!write(STDERR_FILENO, Relay::ready_line.data(), Relay::ready_line.size());
}

std::vector<std::string> mpirun_prefix(int ranks) {
  return {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", std::to_string(ranks)};
}

std::vector<std::string> mpirun_command(int ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = mpirun_prefix(ranks);
  words.push_back(self_path());
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

int launch_ranks(int ranks, const std::vector<std::string>& arguments, OnStop on_stop) {
  return launch_command(ranks, mpirun_command(ranks, arguments), on_stop);
}

int launch_command(int ranks, std::vector<std::string> command, OnStop on_stop) {
  catch_stop_signals(Insisting::is_noted);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  Job job(ranks, command, on_stop);
  job.run();
  return job.outcome(command[0]);
}

}  // namespace trireme

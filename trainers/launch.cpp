#include "trainers/launch.h"

#include "comm/error.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
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

constexpr std::string_view ready_line = "trireme: ready\n";
constexpr const char* launched_by_us = "TRIREME_LAUNCHED";
// From the first error of a rank, or a second signal, to the end of mpirun.
constexpr std::chrono::milliseconds mpirun_patience{3000};

volatile std::sig_atomic_t stop_requests = 0;
void on_stop(int) { stop_requests = stop_requests + 1; }

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // the reader is gone: the job itself goes on
    text.remove_prefix(std::size_t(n));
  }
}

// mpirun's stderr: ranks' lines pass, its banners (between dashed lines) are kept back and read for what they say.
class BannerFilter {
 public:
  void feed(std::string_view text) {
    for (const char c : text) {
      line_ += c;
      if (c == '\n') end_of_line();
      // A progress bar redraws a line without ending it.
      if (c == '\r' && !in_banner_ && !suspicious()) pass();
    }
    if (!in_banner_ && !line_.empty() && !suspicious()) pass();
  }
  void finish() {
    if (!line_.empty()) end_of_line();
  }
  int lost_rank() const { return lost_rank_; }
  const std::string& lost_why() const { return lost_why_; }
  bool error_seen() const { return !errors_.empty(); }
  int ready_ranks() const { return ready_; }
  const std::string& first_banner_line() const { return banner_; }

 private:
  // Could the unfinished line be mpirun's, or an error of ours that another rank repeats?
  bool suspicious() const {
    return line_.starts_with('-') || line_.starts_with('[') || line_.starts_with("trireme: ") ||
           std::string_view("trireme: ").starts_with(line_) || line_.starts_with("mpirun") ||
           std::string_view("mpirun").starts_with(line_);
  }

  void end_of_line() {
    const bool dashes = line_.size() > 40 && line_.find_first_not_of("-\r\n") == std::string::npos;
    if (dashes) {
      in_banner_ = !in_banner_;
      line_.clear();
    } else if (in_banner_ || line_.starts_with("mpirun")) {
      read_banner();
      line_.clear();
    } else if (line_.starts_with('[') && line_.find("] ") != std::string::npos && is_runtime_message()) {
      line_.clear();
    } else if (line_ == ready_line) {
      ++ready_;
      line_.clear();
    } else if (line_.starts_with("trireme: error")) {
      if (errors_.insert(line_).second) pass();
      line_.clear();
    } else {
      pass();
    }
  }

  // "[host:pid] ..." lines of the runtime.
  bool is_runtime_message() const {
    const auto close = line_.find(']'), colon = line_.find(':');
    return colon != std::string::npos && colon < close && line_.find_first_not_of("0123456789", colon + 1) >= close;
  }

  void read_banner() {
    if (banner_.empty() && line_.find_first_not_of(" \r\n") != std::string::npos)
      banner_ = line_.substr(0, line_.size() - 1);
    int rank = -1, signal = 0;
    const auto at = line_.find("process rank ");
    if (at == std::string::npos || std::sscanf(line_.c_str() + at, "process rank %d", &rank) != 1) return;
    lost_rank_ = rank;
    const auto on = line_.find("exited on signal ");
    if (on != std::string::npos && std::sscanf(line_.c_str() + on, "exited on signal %d", &signal) == 1)
      lost_why_ = "killed by signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
  }

  void pass() {
    write_all(STDERR_FILENO, line_);
    line_.clear();
  }

  std::string line_, banner_, lost_why_ = "it ended without finishing";
  std::set<std::string> errors_;
  bool in_banner_ = false;
  int lost_rank_ = -1, ready_ = 0;
};

// Tasks of the srun step that this process is in.
int step_tasks() {
  const char* value = std::getenv("SLURM_STEP_NUM_TASKS");
  return value ? std::atoi(value) : 0;
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
  if (geteuid() == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  setenv("HWLOC_HIDE_ERRORS", "2", 0);  // where /sys is not mounted mpirun would complain; it works without
  execvp(argv[0], argv.data());
  _exit(127);
}

}  // namespace

int launched_ranks() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* value = std::getenv(name)) return std::max(1, std::atoi(value));
  // A step of one task is a shell or a batch system's wrapper as often as a job of one rank.
  const int tasks = step_tasks();
  return tasks > 1 ? tasks : 0;
}

int tasks_alone() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (std::getenv(name)) return 0;
  const int tasks = step_tasks();
  return tasks > 1 ? tasks : 0;
}

int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(name); value && launched_ranks()) return std::max(0, std::atoi(value));
  return 0;
}

void announce_ready() {
  if (std::getenv(launched_by_us)) write_all(STDERR_FILENO, ready_line);
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

int launch_ranks(int ranks, const std::vector<std::string>& arguments) {
  return launch_command(ranks, mpirun_command(ranks, arguments));
}

int launch_command(int ranks, std::vector<std::string> command) {
  int out[2], err[2];
  if (pipe(out) != 0 || pipe(err) != 0) throw CommError("--ranks", std::string("no pipe: ") + std::strerror(errno));
  struct sigaction action {};
  action.sa_handler = on_stop;
  sigemptyset(&action.sa_mask);
  for (const int s : {SIGTERM, SIGINT}) sigaction(s, &action, nullptr);

  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const bool terminal = isatty(STDERR_FILENO);
  const pid_t child = fork();
  if (child < 0) throw CommError("--ranks", std::string("cannot start a process: ") + std::strerror(errno));
  if (child == 0) {
    if (!terminal) unsetenv("TRIREME_TERMINAL");
    setenv(launched_by_us, "1", 1);
    // The size of the terminal is read before stderr becomes a pipe.
    winsize size{};
    if (terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0)
      setenv("TRIREME_TERMINAL", std::to_string(size.ws_col ? size.ws_col : 80).c_str(), 1);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    for (const int fd : {out[0], out[1], err[0], err[1], null}) close(fd);
    run_starter(command);
  }
  close(out[1]);
  close(err[1]);

  BannerFilter filter;
  pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  int open_ends = 2;
  bool asked = false, ended = false;
  std::chrono::steady_clock::time_point requested, overdue;
  int status = 0;
  bool gone = false;
  char text[65536];
  while (open_ends > 0) {
    const auto now = std::chrono::steady_clock::now();
    // mpirun takes ranks that do not answer along after a while; if not, it is not waited for. What it leaves behind
    // holds the pipes open.
    if (!gone && (ended || filter.error_seen()) && overdue == std::chrono::steady_clock::time_point())
      overdue = now + mpirun_patience;
    if (!gone && overdue != std::chrono::steady_clock::time_point() && now > overdue) kill(child, SIGKILL);
    if (!gone && waitpid(child, &status, WNOHANG) == child) {
      gone = true;
      end_leftovers();
    }
    if (stop_requests > 0 && requested == std::chrono::steady_clock::time_point()) requested = now;
    // SIGUSR1 would kill a rank that does not catch it yet. (Ranks on other nodes may not be heard.)
    const bool heard = filter.ready_ranks() >= ranks || now - requested > std::chrono::seconds(10);
    if (stop_requests > 0 && heard && !std::exchange(asked, true)) kill(child, SIGUSR1);
    if (stop_requests > 1 && !std::exchange(ended, true)) kill(child, SIGTERM);
    if (poll(fds, 2, 200) <= 0) continue;
    for (auto& p : fds) {
      if (p.fd < 0 || !(p.revents & (POLLIN | POLLHUP | POLLERR))) continue;
      const ssize_t n = read(p.fd, text, sizeof text);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        p.fd = -1;
        --open_ends;
      } else if (p.fd == out[0]) {
        write_all(STDOUT_FILENO, {text, std::size_t(n)});
      } else {
        filter.feed({text, std::size_t(n)});
      }
    }
  }
  filter.finish();
  while (!gone && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!gone) end_leftovers();
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (ended) return int(ExitCode::killed);
  if (filter.error_seen() && WIFSIGNALED(status)) return int(ExitCode::communication);
  if (code == 0 || code == int(ExitCode::stopped) || filter.error_seen()) return code;
  if (code == 127 && filter.lost_rank() < 0 && filter.first_banner_line().empty())
    throw CommError("--ranks", command[0] + " is not installed or not on PATH",
                    "install openmpi-bin, or start the ranks yourself");
  if (filter.lost_rank() >= 0)
    throw CommError("rank " + std::to_string(filter.lost_rank()), "was lost: " + filter.lost_why(),
                    "the same command resumes from the last checkpoint");
  if (WIFSIGNALED(status))
    throw CommError("mpirun", std::string("was killed: ") + strsignal(WTERMSIG(status)),
                    "the same command resumes from the last checkpoint");
  throw CommError("mpirun", "failed with code " + std::to_string(code) + ": " + filter.first_banner_line());
}

}  // namespace trireme

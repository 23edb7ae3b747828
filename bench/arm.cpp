#include "bench/arm.h"

#include "comm/error.h"
#include "trainers/stop.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

int open_pipe(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) throw DataError(path, std::string("cannot be opened: ") + std::strerror(errno));
  return fd;
}

void send_line(int fd, const std::string& text) {
  const std::string line = text + "\n";
  if (write(fd, line.data(), line.size()) != ssize_t(line.size()))
    throw DataError("benchmark pipe", std::string("cannot be written: ") + std::strerror(errno));
}

// The last words of an arm that failed: our own error or Python's, which mpirun buries under its banner, or else the
// last line.
std::string last_words(const std::string& file) {
  std::ifstream in(file);
  std::string line, last = "it ended without a word", python;
  while (std::getline(in, line)) {
    if (line.starts_with("trireme: error: ")) return line.substr(16, 300);
    if (python.empty() && line.find("Error: ") < 40 && !line.starts_with(' ')) python = line;
    if (line.find_first_not_of(" \t\r-") != std::string::npos) last = line;
  }
  return (python.empty() ? last : python).substr(0, 300);
}

}  // namespace

Arm::Arm(std::string name, const std::vector<std::string>& command, int ranks, std::string folder)
    : name_(std::move(name)), folder_(std::move(folder)) {
  std::filesystem::create_directories(folder_);
  // Read and write: opening waits for nobody, and a dead arm never raises SIGPIPE.
  const auto make = [&](const std::string& file) {
    const std::string path = folder_ + "/" + file;
    if (mkfifo(path.c_str(), 0600) != 0) throw DataError(path, std::string("no pipe: ") + std::strerror(errno));
    return open_pipe(path, O_RDWR);
  };
  for (int r = 0; r < ranks; ++r) commands_.push_back(make("command." + std::to_string(r)));
  reply_ = make("reply");

  std::vector<char*> argv;
  for (const auto& w : command) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) throw CommError("benchmark", std::string("cannot start a process: ") + std::strerror(errno));
  if (pid_ > 0) return;
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  std::signal(SIGPIPE, SIG_DFL);
  const int log = open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600),
            null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  if (geteuid() == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  execvp(argv[0], argv.data());
  _exit(127);
}

Arm::~Arm() { end(); }

void Arm::end() {
  if (pid_ > 0) {
    const bool stopped = stop_requested();  // then a block under way is not waited for
    for (const int fd : commands_) (void)!write(fd, "0\n", 2);
    int status = 0;
    bool gone = false;
    for (int i = 0; i < 300 && !gone; ++i) {
      gone = waitpid(pid_, &status, WNOHANG) != 0;
      if (!gone) {
        if (i == (stopped ? 0 : 100)) kill(-pid_, SIGTERM);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
    if (!gone) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, &status, 0);
    }
    pid_ = -1;
  }
  for (const int fd : commands_) close(fd);
  commands_.clear();
  if (reply_ >= 0) close(reply_);
  reply_ = -1;
}

void Arm::skip(std::string why) {
  skipped_ = std::move(why);
  end();
}

// None: the arm ended, or the time is over.
std::optional<nlohmann::json> Arm::reply(std::chrono::seconds patience) {
  const auto deadline = Clock::now() + patience;
  while (true) {
    if (stop_requested())
      throw Error(ExitCode::killed, "bench", "stopped by a signal before it was done", "the same command starts over");
    if (const auto at = unread_.find('\n'); at != std::string::npos) {
      const std::string line = unread_.substr(0, at);
      unread_.erase(0, at + 1);
      return nlohmann::json::parse(line);
    }
    pollfd p{reply_, POLLIN, 0};
    if (poll(&p, 1, 100) > 0) {
      char text[65536];
      const ssize_t n = read(reply_, text, sizeof text);
      if (n > 0) unread_.append(text, std::size_t(n));
      continue;
    }
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != 0) {
      pid_ = -1;
      return {};
    }
    if (Clock::now() > deadline) return {};
  }
}

bool Arm::ready(std::chrono::seconds patience) {
  if (ready_ || !skipped_.empty()) return ready_ && skipped_.empty();
  if (reply(patience)) return ready_ = true;
  skip(pid_ < 0 ? last_words(folder_ + "/log") : "not ready after " + std::to_string(patience.count()) + " s");
  return false;
}

std::optional<nlohmann::json> Arm::ask(const std::string& command, std::chrono::seconds patience) {
  if (!skipped_.empty()) return {};
  for (const int fd : commands_) send_line(fd, command);
  auto r = reply(patience);
  if (!r)
    skip(pid_ < 0 ? last_words(folder_ + "/log")
                  : "'" + command + "' took longer than " + std::to_string(patience.count()) + " s");
  return r;
}

void Arm::block(int n, bool discard, std::chrono::seconds patience) {
  const auto r = ask(std::to_string(n) + (n == 1 ? " step" : " steps"), patience);
  if (!r) return;
  last_ms_ = r->at("ms").get<double>() / n;
  if (!discard) {
    ms_.push_back(last_ms_);
    cpu_ms_.push_back(r->at("cpu_ms").get<double>() / n);
  }
  for (const auto& loss : r->at("losses")) losses_.push_back(loss.get<double>());
}

std::vector<double> Arm::losses(std::size_t first) const {
  return {losses_.begin(), losses_.begin() + std::ptrdiff_t(std::min(first, losses_.size()))};
}

double Arm::median_ms() const { return quantile(ms_, 0.5); }
double Arm::median_cpu_ms() const { return quantile(cpu_ms_, 0.5); }

nlohmann::json Arm::row() const {
  if (!skipped_.empty()) return {{"arm", name_}, {"skipped", skipped_}};
  nlohmann::json row{{"arm", name_},
                     {"step_ms", median_ms()},
                     {"low_ms", quantile(ms_, 0.25)},
                     {"high_ms", quantile(ms_, 0.75)},
                     {"cpu_ms", median_cpu_ms()},
                     {"blocks", ms_.size()},
                     {"losses", losses(4)}};
  if (!losses_.empty()) row["last_loss"] = losses_.back();
  row["steps"] = losses_.size();
  return row;
}

void alternate(const std::vector<Arm*>& arms, int steps, int blocks) {
  for (int b = 0; b <= blocks; ++b) {
    for (auto* arm : arms) arm->block(steps, b == 0);
    std::fprintf(stderr, "block %d of %d:", b, blocks);
    for (const auto* arm : arms)
      if (arm->skipped().empty()) std::fprintf(stderr, "  %s %.2f ms", arm->name().c_str(), arm->last_ms());
    std::fprintf(stderr, "\n");
  }
}

double thread_cpu_ms() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e3 * double(t.tv_sec) + 1e-6 * double(t.tv_nsec);
}

Server::Server(const std::string& folder, int rank) : rank_(rank) {
  end_on_stop_signals();  // it ends with its parent, and has nothing to save
  command_ = open_pipe(folder + "/command." + std::to_string(rank), O_RDWR);
  if (rank == 0) reply_ = open_pipe(folder + "/reply", O_RDWR);
}

std::optional<std::string> Server::command() {
  if (!std::exchange(ready_, true)) reply({{"ready", true}});
  std::string line;
  for (char c = 0; c != '\n';) {
    const ssize_t n = read(command_, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return {};
    line += c;
  }
  if (line.starts_with('0')) return {};
  line.pop_back();
  return line;
}

std::optional<int> Server::next() {
  const auto line = command();
  return line ? std::optional(std::atoi(line->c_str())) : std::nullopt;
}

void Server::reply(const nlohmann::json& answer) {
  if (rank_ == 0) send_line(reply_, answer.dump());
}

void Server::reply(double total_ms, double cpu_ms, const std::vector<double>& losses) {
  reply({{"ms", total_ms}, {"cpu_ms", cpu_ms}, {"losses", losses}});
}

void Server::run(const std::function<void()>& step, const std::function<double()>& loss) {
  while (const auto n = next()) {
    const auto begin = std::chrono::steady_clock::now();
    const double cpu = thread_cpu_ms();
    for (int i = 0; i < *n; ++i) step();
    const double last = loss();
    const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - begin;
    reply(ms.count(), thread_cpu_ms() - cpu, {last});
  }
}

void Server::run(const std::function<double()>& step) {
  while (const auto n = next()) {
    std::vector<double> losses;
    const auto begin = Clock::now();
    const double cpu = thread_cpu_ms();
    for (int i = 0; i < *n; ++i) losses.push_back(step());
    reply(std::chrono::duration<double, std::milli>(Clock::now() - begin).count(), thread_cpu_ms() - cpu, losses);
  }
}

}  // namespace trireme::bench

// The program `trireme` as its users start it: a process of its own, its exit code, its words and its time.
#pragma once
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace trireme::test {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

inline std::string program_path() {
  if (const char* path = std::getenv("TRIREME_BINARY")) return path;
  const char* source = std::getenv("TRIREME_SOURCE");
  return fs::absolute(std::string(source ? source : ".") + "/build/release/bin/trireme").string();
}

inline std::string read_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const fs::path& file, std::string_view text) { std::ofstream(file, std::ios::binary) << text; }

inline Words lines_of(const std::string& text) {
  std::istringstream in(text);
  Words lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Waits until `condition` holds; false after `limit`. Looks every millisecond. Without a limit that is judged: as long
// as the start of a program takes on a very busy machine.
inline bool wait_until(const std::function<bool()>& condition,
                       std::chrono::milliseconds limit = std::chrono::seconds(60)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "trireme-XXXXXX").string();
    path = mkdtemp(name.data()) ? name : throw std::runtime_error("no temporary folder");
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  fs::path path;
};

// Living processes (zombies have no environment) that have all of these NAME=value in theirs.
inline std::vector<pid_t> processes_with(const Words& pairs) {
  std::vector<pid_t> found;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator("/proc", gone)) {
    const pid_t p = std::atoi(entry.path().filename().c_str());
    if (p <= 0) continue;
    const std::string environment = '\0' + read_text(entry.path() / "environ");
    const auto has = [&](const std::string& pair) { return environment.find('\0' + pair + '\0') != environment.npos; };
    if (std::all_of(pairs.begin(), pairs.end(), has)) found.push_back(p);
  }
  return found;
}

struct Outcome {
  int code = 0;  // 128 + signal if killed, 124 when it ran too long
  std::string out, err;
  double seconds = 0;

  Words errors() const {
    Words found;
    for (const auto& line : lines_of(err))
      if (line.starts_with("trireme: error:")) found.push_back(line);
    return found;
  }
};

inline std::ostream& operator<<(std::ostream& s, const Outcome& o) {
  return s << "code " << o.code << " after " << o.seconds << " s\nstdout:\n" << o.out << "stderr:\n" << o.err;
}

// One started command. Every process of it carries a mark in its environment, by which it is found again.
class Program {
 public:
  struct Options {
    fs::path folder = ".";
    Words environment = {};  // NAME=value
    Words launcher = {};     // words before the program
    std::string program = program_path();
  };

  Program(const Words& arguments, const Options& options) : begin_(std::chrono::steady_clock::now()) {
    static int started = 0;
    mark_ = "TRIREME_TEST_MARK=" + std::to_string(getpid()) + "." + std::to_string(++started);
    Words words = options.launcher;
    words.push_back(options.program);
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    Words environment = options.environment;
    environment.insert(environment.end(), {mark_, "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                           "OMP_NUM_THREADS=1", "ASAN_OPTIONS=detect_leaks=0"});
    out_ = memfd_create("out", MFD_CLOEXEC);
    err_ = memfd_create("err", MFD_CLOEXEC);
    pid_ = fork();
    if (pid_ != 0) return;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // of a test that ctest's limit ends nothing goes on
    for (auto& pair : environment) putenv(pair.data());
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(out_, STDOUT_FILENO);
    dup2(err_, STDERR_FILENO);
    if (chdir(options.folder.c_str()) == 0) execvp(argv[0], argv.data());
    _exit(127);
  }
  ~Program() {
    for (const pid_t p : processes()) kill(p, SIGKILL);
    if (!ended()) kill(pid_, SIGKILL), wait();
    close(out_);
    close(err_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int s) {
    signalled_ = std::chrono::steady_clock::now();
    kill(pid_, s);
  }

  // Its living processes, all of them or those with another `pair` in their environment.
  std::vector<pid_t> processes(const std::string& pair = {}) const {
    return processes_with(pair.empty() ? Words{mark_} : Words{mark_, pair});
  }
  // The process of one MPI rank; 0 if there is none (yet).
  pid_t rank(int r) const {
    const auto found = processes("OMPI_COMM_WORLD_RANK=" + std::to_string(r));
    return found.empty() ? 0 : found.front();
  }
  // False if there is no such rank. (Signal 0 would go to this test's own group.)
  bool signal_rank(int r, int s) const {
    const pid_t p = rank(r);
    return p > 0 && kill(p, s) == 0;
  }
  bool none_left() const {
    return wait_until([&] { return processes().empty(); }, std::chrono::seconds(3));
  }

  std::string said() const { return text_of(err_); }  // on stderr, so far

  bool ended() {
    if (status_ < 0 && waitpid(pid_, &status_, WNOHANG) != pid_) status_ = -1;
    return status_ >= 0;
  }
  Outcome wait(std::chrono::seconds limit = std::chrono::seconds(60)) {
    const bool in_time = wait_until([&] { return ended(); }, limit);
    Outcome o;
    const auto now = std::chrono::steady_clock::now();
    o.seconds = std::chrono::duration<double>(now - begin_).count();
    seconds_from_signal = std::chrono::duration<double>(now - signalled_).count();
    o.code = !in_time ? 124 : WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    o.out = text_of(out_);
    o.err = text_of(err_);
    return o;
  }
  double seconds_from_signal = 0;

 private:
  static std::string text_of(int fd) { return read_text("/proc/self/fd/" + std::to_string(fd)); }

  std::chrono::steady_clock::time_point begin_, signalled_;
  std::string mark_;
  int out_ = -1, err_ = -1, status_ = -1;
  pid_t pid_ = -1;
};

inline Outcome run_program(const Words& arguments, const Program::Options& options) {
  return Program(arguments, options).wait();
}

}  // namespace trireme::test

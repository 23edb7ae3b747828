// Tests on several MPI ranks. The test starts its own ranks: it runs `mpirun -n N self
// --gtest_filter=Suite.Name` and reports what they print if any of them fails. A build against another MPI than Open
// MPI names its launcher in TRIREME_TEST_MPIEXEC.
//
//   MPI_TEST(Reducer, SumsOverRanks, {1, 2, 4}) { EXPECT_EQ(comm.size(), ...); }
//
// `comm` is the world. A failed expectation or an exception in any rank ends all ranks and fails the test.
#pragma once
#include "comm/communicator.h"
#include "comm/error.h"
#include "comm/mpi/mpi.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

namespace trireme::test {

struct Launch {
  int ranks = 1;  // 0: this program itself, without mpirun
  std::string filter;
  std::vector<std::string> environment = {};  // "NAME=value"
  std::chrono::seconds timeout{60};
};

struct Outcome {
  int code = 0;  // 128 + signal if killed, 124 on timeout
  std::string output;
  double seconds = 0;
};

// Is this process one of the ranks that a test started?
inline bool is_rank() { return std::getenv("TRIREME_TEST_RANK") != nullptr; }

// mpirun frames its own messages with long lines of dashes; what is between them only hides the rank's error.
inline std::string without_banner(const std::string& text) {
  std::istringstream in(text);
  std::string out, line;
  bool banner = false;
  while (std::getline(in, line)) {
    if (line.size() > 40 && line.find_first_not_of('-') == std::string::npos) {
      banner = !banner;
    } else if (!banner && line.find("help message") == std::string::npos) {
      out += line + "\n";
    }
  }
  return out;
}

inline std::string self_path() {
  char self[4096] = {};
  return readlink("/proc/self/exe", self, sizeof self - 1) < 0 ? std::string() : self;
}

// MPICH's mpiexec joins the wait statuses of all ranks by "or", those included that it ended itself: then it says that
// a signal was the end, and the code is lost. An exit code of the job comes without that line.
inline void expect_code(int code, const Outcome& outcome) {
#ifdef TRIREME_TEST_MPIEXEC
  if (outcome.output.find("TERMINATED WITH THE EXIT STRING") != std::string::npos) {
    EXPECT_NE(outcome.code, 0);
    return;
  }
#endif
  EXPECT_EQ(outcome.code, code) << outcome.output;
}

// The command line of a launch.
inline std::vector<std::string> words_of(const Launch& l) {
  std::vector<std::string> words;
#ifdef TRIREME_TEST_MPIEXEC
  if (l.ranks > 0) words = {TRIREME_TEST_MPIEXEC, "-n", std::to_string(l.ranks)};
#else
  if (l.ranks > 0) words = {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", std::to_string(l.ranks)};
#endif
  words.insert(words.end(), {self_path(), "--gtest_filter=" + l.filter, "--gtest_brief=1", "--gtest_color=no"});
  return words;
}

// Runs `words` with the environment of a test's ranks.
inline Outcome run_words(std::vector<std::string> words, const std::vector<std::string>& environment,
                         std::chrono::seconds timeout) {
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::steady_clock::now() - begin; };
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {1, "no pipe", 0};
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    for (const char* pair : {"TRIREME_TEST_RANK=1", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                             "OMP_NUM_THREADS=1", "ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0"})
      putenv(const_cast<char*>(pair));
    for (const auto& pair : environment) putenv(const_cast<char*>(pair.c_str()));
    for (const char* name : {"GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX"}) unsetenv(name);  // the ranks' test is one
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  close(ends[1]);
  Outcome outcome;
  bool late = false;
  for (;;) {
    pollfd ready{ends[0], POLLIN, 0};
    const int n = poll(&ready, 1, 200);
    if (n > 0) {
      char buffer[65536];
      const ssize_t got = read(ends[0], buffer, sizeof buffer);
      if (got <= 0) break;
      outcome.output.append(buffer, static_cast<std::size_t>(got));
    } else if (elapsed() > timeout) {
      late = true;
      kill(-child, SIGKILL);  // ranks that survive it lose their mpirun and end by themselves
      break;
    }
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  outcome.code = late ? 124 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.output = without_banner(outcome.output);
  outcome.seconds = std::chrono::duration<double>(elapsed()).count();
  return outcome;
}

inline Outcome launch(const Launch& l) { return run_words(words_of(l), l.environment, l.timeout); }

// Runs `body` on this rank with the world, and ends the job if it fails: other ranks may wait for this one.
inline void run_rank(void (*body)(Communicator&)) {
  MpiWorld mpi;
  try {
    body(mpi.world());
    if (::testing::Test::HasFailure()) throw Error(ExitCode::bug, "test", "an expectation failed on this rank");
    mpi.finalize();
  } catch (const Error& e) {
    std::fflush(stdout);
    mpi.abort(static_cast<int>(e.code()), e.what());
  } catch (const std::exception& e) {
    std::fflush(stdout);
    mpi.abort(1, e.what());
  }
}

inline void run_mpi_test(const std::vector<int>& sizes, void (*body)(Communicator&),
                         const std::vector<std::string>& environment = {}) {
  if (is_rank()) return run_rank(body);
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = std::string(info->test_suite_name()) + "." + info->name();
  for (int n : sizes) {
    const Outcome outcome = launch({n, filter, environment});
    EXPECT_EQ(outcome.code, 0) << "on " << n << " ranks after " << outcome.seconds << " s:\n" << outcome.output;
  }
}

// A test case's name: gtest takes letters, digits and underscores.
inline std::string case_name(std::string_view backend, int ranks) {
  std::string label(backend);
  std::replace(label.begin(), label.end(), '-', '_');
  return label + "_on_" + std::to_string(ranks);
}

}  // namespace trireme::test

#define MPI_TEST(suite, name, ...)                                                             \
  static void suite##_##name##_on_ranks(::trireme::Communicator& comm);                        \
  TEST(suite, name) { ::trireme::test::run_mpi_test(__VA_ARGS__, suite##_##name##_on_ranks); } \
  static void suite##_##name##_on_ranks([[maybe_unused]] ::trireme::Communicator& comm)

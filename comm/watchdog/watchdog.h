// Ends a job that hangs, and says where. One thread a rank looks at the calls of a flight recorder; where one
// is open for too long, the watchdogs ask each other over their own TCP channel (MPI may be stuck) what every
// rank is doing. Each writes hang.rankR.json, the lowest rank whose watchdog answers prints one line, and all
// end with exit code 4 within about 3 s of the limit.
//
//   Traced world(mpi_world);                       // what is derived from it is watched too
//   Watchdog watchdog(world, {.first = 1800, .later = 600, .folder = "runs/x"});
//   watchdog.phase("loader"); ... watchdog.finished(step);
#pragma once
#include "comm/wrappers/traced.h"

#include <atomic>
#include <thread>

namespace trireme {

class Watchdog {
 public:
  struct Options {
    // Seconds that a collective may stay open; 0: no limit. warn: a line is printed. first: until finished()
    // is called for the first time, later: from then on.
    double warn = 60, first = 1800, later = 600;
    std::string folder = {};  // for hang.rankR.json; empty: none is written
    // The process that started this rank must not be outlived: a rank whose parent ends, ends too.
    bool follow_parent = false;
    // Ranks may rightly work for long without each other: a rank that waits has its limit, and the job ends where
    // one of those it waits for has given no sign of life for its own: entered no collective, be it alone, nor told of
    // a phase or step. False: whoever does not come in time hangs.
    bool apart = false;
    // What to do with a line, and at the end. By default: write it to stderr; _exit(4).
    std::function<void(std::string_view line)> print = {};
    std::function<void()> end = {};
  };

  // Collective over `world`. A group of one has nobody to wait for: no thread is started.
  Watchdog(Traced& world, Options options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // From the training thread: what it does now ("loader": a literal), and that it has finished a step.
  void phase(const char* what);
  void begins(const char* what);  // the same, and `first` holds again until finished()
  void finished(std::int64_t step);

 private:
  class Thread;
  struct Seen {
    std::atomic<const char*> phase{""};
    std::atomic<std::int64_t> since_ns{0}, step{0};
    std::atomic<bool> one_step{false};
  };

  Seen seen_;
  std::unique_ptr<Thread> thread_;
};

}  // namespace trireme

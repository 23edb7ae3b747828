// Rank 0's part of the driver: turns reports and letters into decisions, and keeps the journal.
#pragma once
#include "trainers/sweep/cluster/driver.h"
#include "trainers/sweep/cluster/inbox.h"
#include "trainers/sweep/cluster/journal.h"

#include <chrono>
#include <map>
#include <set>

namespace trireme::cluster {

// What a task's first rank says in a round. Plain bytes: it travels.
struct Report {
  enum Kind : std::int64_t { nothing, measured, cut, done, failed };
  std::int64_t kind = nothing, ranks = 0, stop = 0, code = 0;
  double remaining = 0, remaining_all = 0;
  char why[600] = {};
};

// A task that begins, goes on or moves; empty ranks: nobody.
struct Assignment {
  TaskOrder order;
  std::vector<int> ranks;
  bool moved = false;  // it ran on more ranks: those save it first
};

struct Decision {
  bool stop = false, finished = false;
  std::vector<Assignment> begin;   // on new communicators
  std::vector<std::string> go_on;  // after a cut, as they are
  bool regroups() const { return !begin.empty() || !go_on.empty(); }
};

class Dispatcher {
 public:
  Dispatcher(const DriveOptions&, const ReadTask&);
  Decision decide(const std::vector<Report>& reports);  // of all ranks
  DriveResult result() const;

 private:
  double now() const;
  void take(const std::string& text, const std::string& letter);  // throws where it cannot be
  void read_inbox();
  void hear(const Report& report, int rank, Decision& decision);
  void measured(const std::string& task, double remaining);
  void say(const std::string& line) const;

  const DriveOptions& options_;
  ReadTask read_;
  Recovered before_;
  Journal journal_;
  Inbox inbox_;
  Scheduler scheduler_;
  std::map<std::string, TaskOrder> orders_;
  std::map<int, std::string> leaders_;  // first rank of each running task
  std::map<std::string, std::vector<int>> ranks_;
  bool arrived_ = false;
  DriveResult result_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now(),
                                        looked_ = begin_ - std::chrono::hours(1);
};

}  // namespace trireme::cluster

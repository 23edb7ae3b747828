// Rigid parallel tasks on interchangeable GPUs, makespan: P | size_j | C_max (ALTO, arXiv 2604.05426, 7.2), with
// running tasks pinned. Plain values; times are seconds from now.
//
// Which GPU runs what needs no variable: intervals whose demand never exceeds `gpus` always get a fixed set each by
// taking free ones as they start (gpus.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace trireme::cluster {

struct Task {
  std::string name;
  int gpus = 1;  // at most the cluster's
  double seconds = 0;
};

struct Pinned {
  int gpus;
  double end;  // when it is expected to free them; <= 0: any moment
};

struct Problem {
  int gpus = 1;
  std::vector<Task> waiting;  // in the order of arrival
  std::vector<Pinned> running;
};

struct Plan {
  std::vector<double> start;  // of waiting[i]
  double makespan = 0;        // end of the last task, running ones included
  double bound = 0;           // no schedule ends earlier
  bool optimal = false;       // proved
  std::string by;             // what found it: "area", "size", ..., "search"
  std::int64_t nodes = 0;     // of the search
  double gap() const { return bound > 0 ? makespan / bound - 1 : 0; }
};

// What an answer to a plan must hold: throws Error(bug) where more than `gpus` GPUs would be busy at once.
void check(const Problem&, const Plan&);

}  // namespace trireme::cluster

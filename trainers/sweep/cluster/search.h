// Makespan by annealing, then exact by depth-first branch and bound. Tasks are appended in the order of their starts
// (free_times.h), so a node is the set of tasks that remain and the sorted times at which GPUs fall free. It is cut
// where
// - a bound reaches the target: for each width w, GPUs are floor(G/w) slots of which a task fills floor(g/w) (w = 1:
//   area; w > G/2: tasks that exclude each other), energy after the moment at which w GPUs are free, the longest task,
//   chains of tasks of which no two can overlap;
// - another node with the same set has no later free time (memory of nodes, at most 64 MiB);
// - a remaining task would fit wholly into the idle time that appending this one leaves before its start.
#pragma once
#include "trainers/sweep/cluster/problem.h"

namespace trireme::cluster {

struct Limits {
  double seconds = 2;                          // of this thread's CPU time; what was proved until then is reported
  std::int64_t nodes = std::int64_t(1) << 40;  // makes a plan repeatable where the clock would not
};

constexpr std::size_t most_searched = 64;  // waiting tasks

// Betters `plan`, a schedule of the problem with a bound, and its bound; at most `most_searched` tasks wait. The same
// plan every time, unless `seconds` run out.
void search(const Problem&, const Limits&, Plan& plan);

}  // namespace trireme::cluster

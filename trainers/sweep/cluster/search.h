// Exact makespan by depth-first branch and bound. Tasks are appended in the order of their starts (free_times.h), so a
// node is the set of tasks that remain and the sorted times at which GPUs fall free. It is cut where
// - a bound reaches the best schedule known: for each width w, GPUs are floor(G/w) slots of which a task fills
//   floor(g/w) (w = 1: area; w > G/2: tasks that exclude each other), longest tasks, pairs that must share a slot;
// - another node with the same set has no later free time (memory of nodes);
// - a remaining task would fit wholly into the idle time that appending this one leaves before its start.
#pragma once
#include "trainers/sweep/cluster/problem.h"

namespace trireme::cluster {

struct Limits {
  double seconds = 2;                          // of the clock; what was proved until then is reported
  std::int64_t nodes = std::int64_t(1) << 40;  // makes a plan repeatable where the clock would not
};

constexpr std::size_t most_searched = 64;  // waiting tasks

// Betters `plan`, a schedule of the problem, and sets its bound; at most `most_searched` tasks wait.
void search(const Problem&, const Limits&, Plan& plan);

}  // namespace trireme::cluster

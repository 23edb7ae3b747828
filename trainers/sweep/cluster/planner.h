// The policies of the inter-task scheduler.
#pragma once
#include "trainers/sweep/cluster/problem.h"
#include "trainers/sweep/cluster/search.h"

#include <string_view>
#include <vector>

namespace trireme::cluster {

enum class Policy {
  fifo,           // strict: the oldest task waits for its GPUs, all others behind it
  fifo_backfill,  // the oldest that fits
  shortest,       // the shortest that fits
  list,           // the best of the list schedules by size, area and seconds
  search,         // that, then branch and bound
};
std::string_view name(Policy);
const std::vector<Policy>& policies();

// Its bound is proved for `search`; for the others the plain one of area and longest task.
Plan plan(const Problem&, Policy, const Limits&);

// What the planner is told a task takes. worst: nothing exits early (ALTO's choice). expected: the cut alone, warm-up
// and the kept share of the rest, `seconds * (warmup + keep * (1 - warmup))`.
enum class Durations { worst, expected };
double planned_seconds(double seconds, Durations, double warmup, double keep);

}  // namespace trireme::cluster

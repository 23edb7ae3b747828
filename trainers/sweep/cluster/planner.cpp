#include "trainers/sweep/cluster/planner.h"

#include "trainers/sweep/cluster/lists.h"

#include <algorithm>
#include <numeric>

namespace trireme::cluster {
namespace {

double plain_bound(const Problem& p) {
  double area = 0, longest = 0;
  for (const auto& t : p.waiting) area += t.gpus * t.seconds, longest = std::max(longest, t.seconds);
  for (const auto& r : p.running) area += r.gpus * std::max(r.end, 0.0), longest = std::max(longest, r.end);
  return std::max(area / p.gpus, longest);
}

Plan best_list(const Problem& p) {
  Plan best;
  for (const Order order : {Order::size, Order::area, Order::longest}) {
    Plan plan = list_schedule(p, ordered(p, order));
    plan.by = name(order);
    if (best.by.empty() || plan.makespan < best.makespan) best = std::move(plan);
  }
  return best;
}

}  // namespace

std::string_view name(Policy policy) {
  switch (policy) {
    case Policy::fifo:
      return "fifo";
    case Policy::fifo_backfill:
      return "fifo_backfill";
    case Policy::shortest:
      return "shortest";
    case Policy::list:
      return "list";
    case Policy::search:
      return "search";
  }
  return "";
}

const std::vector<Policy>& policies() {
  static const std::vector<Policy> all = {Policy::fifo, Policy::fifo_backfill, Policy::shortest, Policy::list,
                                          Policy::search};
  return all;
}

Plan plan(const Problem& p, Policy policy, const Limits& limits) {
  Plan plan;
  switch (policy) {
    case Policy::fifo:
    case Policy::fifo_backfill:
      plan = list_schedule(p, ordered(p, Order::arrival), policy == Policy::fifo_backfill);
      break;
    case Policy::shortest:
      plan = list_schedule(p, ordered(p, Order::shortest));
      break;
    case Policy::list:
    case Policy::search:
      plan = best_list(p);
      break;
  }
  if (plan.by.empty()) plan.by = name(policy);
  plan.bound = std::min(plain_bound(p), plan.makespan);
  plan.optimal = plan.bound >= plan.makespan;
  if (policy == Policy::search && !plan.optimal && p.waiting.size() <= most_searched) search(p, limits, plan);
  return plan;
}

double planned_seconds(double seconds, Durations durations, double warmup, double keep) {
  return durations == Durations::worst ? seconds : seconds * (warmup + keep * (1 - warmup));
}

}  // namespace trireme::cluster

#include "trainers/sweep/cluster/lists.h"

#include "comm/error.h"
#include "trainers/sweep/cluster/free_times.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace trireme::cluster {

std::string_view name(Order o) {
  switch (o) {
    case Order::arrival:
      return "arrival";
    case Order::shortest:
      return "shortest";
    case Order::longest:
      return "longest";
    case Order::size:
      return "size";
    case Order::area:
      return "area";
  }
  return "";
}

std::vector<int> ordered(const Problem& p, Order order) {
  std::vector<int> list(p.waiting.size());
  std::iota(list.begin(), list.end(), 0);
  const auto key = [&](int i) -> std::pair<double, double> {
    const Task& t = p.waiting[std::size_t(i)];
    switch (order) {
      case Order::arrival:
        return {0, 0};
      case Order::shortest:
        return {t.seconds, 0};
      case Order::longest:
        return {-t.seconds, -t.gpus};
      case Order::size:
        return {-t.gpus, -t.seconds};
      case Order::area:
        return {-t.gpus * t.seconds, -t.gpus};
    }
    return {};
  };
  std::stable_sort(list.begin(), list.end(), [&](int a, int b) { return key(a) < key(b); });
  return list;
}

Plan list_schedule(const Problem& p, const std::vector<int>& list, bool skip) {
  Plan plan;
  plan.start.assign(p.waiting.size(), 0);
  using End = std::pair<double, int>;  // time, GPUs
  std::priority_queue<End, std::vector<End>, std::greater<>> ends;
  int free = p.gpus;
  for (const auto& r : p.running) {
    ends.emplace(std::max(r.end, 0.0), r.gpus), free -= r.gpus;
    plan.makespan = std::max(plan.makespan, r.end);
  }
  std::vector<int> left = list;
  for (double now = 0; !left.empty();) {
    for (auto i = left.begin(); i != left.end() && free > 0;) {
      const Task& t = p.waiting[std::size_t(*i)];
      if (t.gpus > free) {
        if (!skip) break;
        ++i;
        continue;
      }
      plan.start[std::size_t(*i)] = now;
      plan.makespan = std::max(plan.makespan, now + t.seconds);
      ends.emplace(now + t.seconds, t.gpus), free -= t.gpus;
      i = left.erase(i);
    }
    if (left.empty()) break;
    if (ends.empty()) throw Error(ExitCode::bug, "list_schedule", "a task asks for more GPUs than there are");
    now = ends.top().first;
    for (; !ends.empty() && ends.top().first <= now; ends.pop()) free += ends.top().second;
  }
  return plan;
}

void check(const Problem& p, const Plan& plan) {
  std::vector<std::pair<double, int>> changes;  // ends sort before starts of the same moment
  for (const auto& r : p.running) changes.insert(changes.end(), {{0, r.gpus}, {std::max(r.end, 0.0), -r.gpus}});
  for (std::size_t i = 0; i < p.waiting.size(); ++i) {
    const double start = plan.start.at(i), end = start + p.waiting[i].seconds;
    if (!(start >= 0) || end > plan.makespan * (1 + 1e-12))
      throw Error(ExitCode::bug, "plan", p.waiting[i].name + " lies outside of it");
    changes.insert(changes.end(), {{start, p.waiting[i].gpus}, {end, -p.waiting[i].gpus}});
  }
  std::sort(changes.begin(), changes.end());
  int busy = 0;
  for (const auto& [time, gpus] : changes)
    if ((busy += gpus) > p.gpus) throw Error(ExitCode::bug, "plan", "more GPUs busy than there are");
}

}  // namespace trireme::cluster

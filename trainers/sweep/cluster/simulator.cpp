#include "trainers/sweep/cluster/simulator.h"

#include <algorithm>
#include <limits>
#include <map>

namespace trireme::cluster {
namespace {

struct Live {
  const Recorded* recorded;
  std::size_t bar;  // its open one
  double begun;
  double next;  // when its cut or its end comes
  bool cut_to_come;
  std::size_t told = 0;  // of what it says of itself

  double next_told() const {  // behind its cut nothing is told before the cut came
    const bool none =
        told == recorded->told.size() || (cut_to_come && recorded->told[told].after >= recorded->before_cut);
    return none ? std::numeric_limits<double>::infinity() : begun + recorded->told[told].after;
  }
};

void hear(Scheduler& scheduler, const std::string& task, Live& l, double now) {
  for (; l.next_told() <= now; ++l.told) scheduler.measured(task, now, l.recorded->told[l.told].remaining);
}

}  // namespace

Trace simulate(const Settings& settings, const std::vector<Recorded>& tasks) {
  Scheduler scheduler(settings);
  Trace trace;
  std::vector<const Recorded*> arrivals;
  std::map<std::string, const Recorded*> by_name;
  for (const auto& t : tasks) arrivals.push_back(&t), by_name[t.task.name] = &t;
  std::stable_sort(arrivals.begin(), arrivals.end(), [](auto* a, auto* b) { return a->arrival < b->arrival; });
  std::size_t arrived = 0;
  std::map<std::string, Live> live;
  double now = 0;
  while (arrived < arrivals.size() || !scheduler.done()) {
    double next = std::numeric_limits<double>::infinity();
    if (arrived < arrivals.size()) next = arrivals[arrived]->arrival;
    for (const auto& [name, l] : live) next = std::min({next, l.next, l.next_told()});
    now = std::max(now, next);
    const std::size_t before = arrived;
    for (; arrived < arrivals.size() && arrivals[arrived]->arrival <= now; ++arrived)
      scheduler.arrive(arrivals[arrived]->task);
    for (auto l = live.begin(); l != live.end();) {
      hear(scheduler, l->first, l->second, now);
      if (l->second.next > now) {
        ++l;
        continue;
      }
      Live& run = l->second;
      trace.actual[run.bar].end = now;
      if (run.cut_to_come) {
        const Recorded& r = *run.recorded;
        const double told = r.after_cut_told < 0 ? r.after_cut : r.after_cut_told;
        const auto kept = scheduler.cut(l->first, now, told, r.gpus_after, r.after_cut_all);
        const bool all = r.after_cut_all > 0 && int(kept.size()) == r.task.gpus;
        const double left = all ? r.after_cut_all : r.after_cut;
        trace.actual.push_back({l->first, kept, now, now, true});
        run.bar = trace.actual.size() - 1, run.next = now + left, run.cut_to_come = false;
        hear(scheduler, l->first, run, now);
        ++l;
      } else {
        scheduler.complete(l->first);
        l = live.erase(l);
      }
    }
    const int plans = scheduler.plans();
    const auto starts = scheduler.due(now);
    if (scheduler.plans() > plans && !scheduler.last_plan().optimal) {
      ++trace.unproved;
      trace.worst_gap = std::max(trace.worst_gap, scheduler.last_plan().gap());
    }
    if (arrived > before) trace.plan = scheduler.planned();
    for (const auto& s : starts) {
      const Recorded& r = *by_name.at(s.task);
      trace.actual.push_back({s.task, s.gpus, now, now, false});
      live[s.task] = {&r, trace.actual.size() - 1, now, now + r.before_cut, r.after_cut > 0};
    }
  }
  trace.makespan = now;
  trace.plans = scheduler.plans();
  return trace;
}

}  // namespace trireme::cluster

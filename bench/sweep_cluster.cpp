// The inter-task scheduler of LoRA sweeps. --problem plan: how far branch and bound proves, against the list schedules.
// --problem cluster: makespans of a *simulated* cluster (virtual clock, drawn durations), policy by policy.
// --problem "run DIR[,DIR...] [on GPUS[,GPUS...]]": likewise of the tasks that sweeps recorded in their folders, on the
// GPUs that each had and on others, beside what really happened.
#include "bench/bench.h"
#include "bench/judge.h"
#include "comm/error.h"
#include "data/rng.h"
#include "trainers/sweep/cluster/recording.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <sstream>

#include <time.h>

namespace trireme::bench {
namespace {

using namespace cluster;

constexpr double warmup = 0.05, keep = 0.25, hour = 3600;

// ALTO's kinds: 1 GPU (7-8B), 2 (32B), 4 (70B); 1 to 10 hours.
std::vector<Task> draw(int tasks, std::uint64_t seed) {
  Rng rng(seed, "sweep_cluster", std::uint64_t(tasks));
  std::vector<Task> all;
  for (int i = 0; i < tasks; ++i) {
    const int gpus = 1 << rng.below(3);
    all.push_back({"task" + std::to_string(i), gpus, hour * (1 + 9 * rng.uniform())});
  }
  return all;
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x;
  return sum / double(v.size());
}

nlohmann::json plan_row(int tasks, int instances) {
  std::vector<double> seconds, gaps, lists, shortest, fifo;
  int proved = 0;
  for (int i = 0; i < instances; ++i) {
    const Problem p{8, draw(tasks, std::uint64_t(i)), {}};
    const double begin = cpu_seconds();
    const Plan best = plan(p, Policy::search, {2});
    seconds.push_back(cpu_seconds() - begin);
    gaps.push_back(best.gap());
    proved += best.optimal;
    const auto above = [&](Policy policy) { return plan(p, policy, {}).makespan / best.makespan - 1; };
    lists.push_back(above(Policy::list)), shortest.push_back(above(Policy::shortest)),
        fifo.push_back(above(Policy::fifo));
  }
  return {{"problem", "plan"},
          {"arm", std::to_string(tasks) + " tasks"},
          {"gpus", 8},
          {"instances", instances},
          {"proved", proved},
          {"cpu_s_mean", mean(seconds)},
          {"cpu_s_worst", *std::max_element(seconds.begin(), seconds.end())},
          {"gap_mean", mean(gaps)},
          {"gap_worst", *std::max_element(gaps.begin(), gaps.end())},
          {"list_above", mean(lists)},
          {"shortest_above", mean(shortest)},
          {"fifo_above", mean(fifo)}};
}

// What exits early, and what the planner is told.
struct Exits {
  const char* name;
  bool cut, curves;  // curves: jobs diverge and overfit as well, up to 30 % of warm-up and 50 % of the rest
  Durations durations;
  enum { never, always, planned } repack;  // survivors on half the GPUs, for twice the time
  bool spread;                             // tasks arrive over the time that the work takes at least
};
const Exits arms[] = {
    {"none", false, false, Durations::worst, Exits::never, false},
    {"cut, told expected", true, false, Durations::expected, Exits::never, false},
    {"cut, told worst", true, false, Durations::worst, Exits::never, false},
    {"cut and curves, told expected", true, true, Durations::expected, Exits::never, false},
    {"cut and curves, told worst", true, true, Durations::worst, Exits::never, false},
    {"cut and curves, told expected, always repacked", true, true, Durations::expected, Exits::always, false},
    {"cut and curves, told expected, repacked where the plan gains", true, true, Durations::expected, Exits::planned,
     false},
    {"none, arriving", false, false, Durations::worst, Exits::never, true},
    {"cut and curves, told expected, arriving", true, true, Durations::expected, Exits::never, true},
};

std::vector<Recorded> recorded(int gpus, int tasks, std::uint64_t seed, const Exits& e) {
  Rng rng(seed, "sweep_cluster exits", std::uint64_t(tasks));
  std::vector<Recorded> all;
  double area = 0;
  for (const Task& t : draw(tasks, seed)) {
    const double first = e.curves ? 1 - 0.3 * rng.uniform() : 1, rest = e.curves ? 1 - 0.5 * rng.uniform() : 1;
    Recorded r{t, rng.uniform(), t.seconds, 0, t.gpus};
    if (e.cut) {
      r.task.seconds = planned_seconds(t.seconds, e.durations, warmup, keep);
      r.before_cut = warmup * t.seconds * first;
      r.after_cut = keep * (1 - warmup) * t.seconds * rest;
    }
    if (e.repack != Exits::never && t.gpus > 1) {
      if (e.repack == Exits::planned) r.after_cut_all = r.after_cut;
      r.gpus_after /= 2, r.after_cut *= 2;
    }
    area += t.gpus * r.before_cut + r.gpus_after * r.after_cut;
    all.push_back(r);
  }
  for (auto& r : all) r.arrival *= e.spread ? area / gpus : 0;
  return all;
}

// No schedule of what really ran ends earlier.
double real_bound(int gpus, const std::vector<Recorded>& tasks) {
  double area = 0, last = 0;
  for (const auto& r : tasks) {
    area += r.task.gpus * r.before_cut + r.gpus_after * r.after_cut;
    last = std::max(last, r.arrival + r.before_cut + (r.after_cut_all > 0 ? r.after_cut_all : r.after_cut));
  }
  return std::max(area / gpus, last);
}

void cluster_rows(int gpus, int tasks, int instances, std::int64_t nodes, nlohmann::json& rows) {
  std::map<Policy, std::vector<double>> whole;  // without early exit
  for (const Exits& e : arms) {
    std::map<Policy, std::vector<double>> hours, over;
    for (int i = 0; i < instances; ++i) {
      const auto work = recorded(gpus, tasks, std::uint64_t(i), e);
      for (const Policy policy : policies()) {
        const double s = simulate({gpus, 8, policy, {60, nodes}}, work).makespan;
        hours[policy].push_back(s / hour), over[policy].push_back(s / real_bound(gpus, work));
      }
    }
    if (!e.cut && !e.spread) whole = hours;
    const std::vector<double> ones(std::size_t(instances), 1.0);
    for (const Policy policy : policies()) {
      const Ratio h = ratio_of(hours[policy], ones), ours = ratio_of(hours[policy], hours[Policy::search]);
      nlohmann::json row = {{"problem", "cluster, simulated"},
                            {"arm", std::string(name(policy))},
                            {"gpus", gpus},
                            {"tasks", tasks},
                            {"instances", instances},
                            {"exits", e.name},
                            {"makespan_h", h.mean},
                            {"makespan_h_95", {h.low, h.high}},
                            {"over_search", ours.mean},
                            {"over_search_95", {ours.low, ours.high}},
                            {"over_bound", mean(over[policy])}};
      if (!e.spread) {
        const Ratio gain = ratio_of(whole[policy], hours[policy]);
        row["gain_of_exits"] = gain.mean, row["gain_of_exits_95"] = {gain.low, gain.high};
        const Ratio fifo = ratio_of(whole[Policy::fifo], hours[policy]);
        row["over_plain_fifo"] = fifo.mean, row["over_plain_fifo_95"] = {fifo.low, fifo.high};
      }
      rows.push_back(std::move(row));
    }
  }
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> all;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');)
    if (!part.empty()) all.push_back(part);
  return all;
}

// A plan is made anew whenever a task said something: each has so much of the search, which also makes rows repeatable.
constexpr Limits replanning{60, 10000};

// Of one run on so many GPUs.
void run_rows(const std::string& dir, const Recording& recording, int gpus, nlohmann::json& rows) {
  for (const bool exits : {true, false}) {
    const auto tasks = exits ? recording.tasks : without_exits(recording);
    for (const Policy policy : tasks.empty() ? std::vector<Policy>{} : policies()) {
      const Trace trace = simulate({gpus, 8, policy, replanning}, tasks);
      rows.push_back({{"problem", "run, simulated"},
                      {"arm", std::string(name(policy))},
                      {"run", dir},
                      {"gpus", gpus},
                      {"tasks", tasks.size()},
                      {"left_out", recording.left_out},
                      {"exits", exits ? "as recorded" : "none, forecast"},
                      {"makespan_s", trace.makespan},
                      {"plans", trace.plans},
                      {"real_gpus", recording.gpus},
                      {"real_makespan_s", recording.makespan}});
      if (recording.least_gpus < recording.gpus) rows.back()["real_gpus_least"] = recording.least_gpus;
      std::cerr << rows.back().dump() << std::endl;  // many tasks that tell much take their time
    }
  }
}

void recorded_rows(const std::string& words, nlohmann::json& rows) {
  const std::size_t on = words.rfind(" on ");
  const auto runs = split(words.substr(0, on));
  if (runs.empty()) throw UsageError("--problem", "run names no folder", "write \"run DIR\"");
  std::vector<int> others;
  for (const auto& number : split(on == words.npos ? "" : words.substr(on + 4))) {
    char* end = nullptr;
    const long n = std::strtol(number.c_str(), &end, 10);
    if (*end || n < 1 || n > 65536)
      throw UsageError("--problem", "'" + number + "' is no number of GPUs", "write \"run DIR on 4,8\"");
    others.push_back(int(n));
  }
  for (const auto& dir : runs) {
    const Recording recording = read_recording(dir);
    int widest = 1;
    for (const auto& r : recording.tasks) widest = std::max(widest, r.task.gpus);
    for (const auto& r : recording.tasks)
      if (r.told.empty()) {
        std::cerr << dir << ": task " << r.task.name << " told nothing before it ended: no rows without exits\n";
        break;
      }
    std::vector<int> counts{recording.gpus};
    for (const int n : others) {
      if (n < widest)
        throw UsageError("--problem",
                         dir + " has a task on " + std::to_string(widest) + " GPUs, not " + std::to_string(n),
                         "write larger numbers after on");
      if (std::ranges::find(counts, n) == counts.end()) counts.push_back(n);
    }
    for (const int n : counts) run_rows(dir, recording, n, rows);
  }
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  if (o.problem.starts_with("run ")) {
    recorded_rows(o.problem.substr(4), rows);
    return rows;
  }
  if (!o.problem.empty() && o.problem != "plan" && o.problem != "cluster")
    throw UsageError("--problem", "'" + o.problem + "' is none", "write plan, cluster or \"run DIR\", or leave it out");
  if (o.problem != "cluster")
    for (int tasks : {8, 11, 14}) rows.push_back(plan_row(tasks, 30));
  if (o.problem != "plan") {
    cluster_rows(8, 11, 30, 5000, rows);
    cluster_rows(64, 88, 10, 200, rows);
  }
  return rows;
}

const Benchmarks::Entry entry({"sweep_cluster",
                               "the inter-task scheduler of LoRA sweeps: plans, and makespans of a simulated cluster",
                               run, nullptr});

}  // namespace
}  // namespace trireme::bench

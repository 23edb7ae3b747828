// The page of a sweep that runs, was stopped or killed, or is over, from what is in its folder.
#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "framework/base/agree.h"
#include "trainers/sweep/cluster/journal.h"
#include "trainers/sweep/order.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>

namespace trireme::sweep {
namespace {

using nlohmann::json;

// Lines that can be read: the last one may be half written.
void each_line(const std::string& file, const std::function<void(const json&)>& use) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) try {
      if (const json o = parse_json(line); o.is_object()) use(o);
    } catch (const json::exception&) {
    }
}

// By job, from the task's losses and decisions.
std::map<std::string, JobOutcome> jobs_so_far(const std::string& folder) {
  std::map<std::string, JobOutcome> jobs;
  each_line(folder + "/losses.jsonl", [&](const json& o) {
    if (const json steps = o.value("total_steps", json()); steps.is_object())
      for (const auto& [job, n] : steps.items())
        jobs[job] = {{}, "", 0, n.get<std::int64_t>(), std::numeric_limits<double>::infinity(), 0};
    const auto found = jobs.find(o.value("job", ""));
    if (found == jobs.end()) return;
    found->second.steps = std::max(found->second.steps, o.value("step", std::int64_t(0)));
    if (const json v = o.value("val_loss", json()); v.is_number())
      found->second.best = std::min(found->second.best, v.get<double>());
  });
  each_line(folder + "/decisions.jsonl", [&](const json& o) {
    const auto found = jobs.find(o.value("job", ""));
    const std::string decision = o.value("decision", "kept");
    if (found != jobs.end() && decision != "kept") found->second.end = decision;
  });
  return jobs;
}

// Samples by the jobs' steps: what those that have exited did not train is saved.
TaskOutcome outcome_so_far(const SweepConfig& sweep, const TaskConfig& task, const std::string& folder) {
  TaskOutcome o;
  auto known = jobs_so_far(folder);
  for (const auto& c : candidates(task.search, std::uint64_t(sweep.seed), task.place)) {
    JobOutcome j{c, "", 0, 0, std::numeric_limits<double>::infinity(), 0};
    if (const auto found = known.find(c.job); found != known.end()) j = found->second, j.candidate = c;
    const bool exited = !j.end.empty(), all = j.steps > 0 && j.steps == j.total_steps;
    if (!exited) j.end = all ? "done" : j.steps > 0 ? "under way" : "waiting";
    if (j.end != "too_large") {
      o.all_samples += j.total_steps * c.batch_size;
      o.samples += (exited ? j.steps : j.total_steps) * c.batch_size;
    }
    const bool counts = !exited || j.end == "overfitting";
    if (counts && std::isfinite(j.best) && (o.winner < 0 || j.best < o.jobs[std::size_t(o.winner)].best))
      o.winner = std::ssize(o.jobs);
    o.jobs.push_back(std::move(j));
  }
  return o;
}

}  // namespace

void report_sweep(const std::string& folder, const std::string& out_file) {
  const std::string saved = folder + "/config.resolved.yaml";
  const auto bytes = read_file(saved, 1 << 20);
  SweepConfig sweep = begun_sweep({bytes.begin(), bytes.end()}, saved);
  sweep.resolved.assign(bytes.begin(), bytes.end());
  std::vector<Order> orders;
  for (const auto& task : sweep.tasks) orders.push_back({sweep, task});
  for (const auto& text : cluster::arrived(folder)) {
    Order order = read_order(text);
    const auto same = [&](const Order& o) { return o.task.name == order.task.name; };
    if (std::ranges::none_of(orders, same)) orders.push_back(std::move(order));
  }
  std::vector<TaskConfig> tasks;
  std::vector<TaskOutcome> outcomes;
  for (const auto& o : orders) {
    const auto failure = attempt([&] {  // a task that its own input ended has no page
      const std::string at = folder + "/" + o.task.name;
      auto over = read_outcome(at);
      outcomes.push_back(over ? std::move(*over) : outcome_so_far(o.sweep, o.task, at));
      tasks.push_back(o.task);
    });
    if (failure) std::cerr << "task " << o.task.name << " is not in the report: " << failure->what << std::endl;
  }
  write_page(folder, sweep, tasks, outcomes, out_file);
}

}  // namespace trireme::sweep

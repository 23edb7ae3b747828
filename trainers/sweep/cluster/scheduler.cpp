#include "trainers/sweep/cluster/scheduler.h"

#include "comm/error.h"

#include <algorithm>
#include <numeric>

namespace trireme::cluster {

void Scheduler::arrive(const Task& task) {
  if (task.gpus < 1 || task.gpus > settings_.gpus)
    throw UsageError("task " + task.name,
                     "asks for " + std::to_string(task.gpus) + " GPUs of " + std::to_string(settings_.gpus),
                     "ask for fewer, or start more ranks");
  if (!(task.seconds > 0) || task.seconds > 1e9)
    throw UsageError("task " + task.name, "has no usable duration", "give seconds above 0 and below 1e9");
  waiting_.push_back(task);
  changed_ = true;
}

void Scheduler::complete(const std::string& task) {
  const auto it = running_.find(task);
  if (it == running_.end()) throw Error(ExitCode::bug, "scheduler", task + " does not run");
  gpus_.release(it->second.gpus);
  running_.erase(it);
  changed_ = true;
}

std::vector<int> Scheduler::cut(const std::string& task, double now, double remaining, int gpus, double remaining_all) {
  Running& r = running_.at(task);
  const int all = int(r.gpus.size());
  gpus = std::clamp(gpus, 1, all);
  if (gpus < all && remaining_all > 0 && remaining_all < remaining) {
    r.start = now, r.end = now + remaining_all, r.after_cut = true;
    Problem p = problem(now);
    const double wide = plan(p, settings_.policy, settings_.limits).makespan;
    p.running[std::size_t(std::distance(running_.begin(), running_.find(task)))] = {gpus, remaining};
    if (plan(p, settings_.policy, settings_.limits).makespan >= wide) gpus = all, remaining = remaining_all;
  }
  const auto keep = r.gpus.begin() + gpus;
  gpus_.release({keep, r.gpus.end()});
  r.gpus.erase(keep, r.gpus.end());
  r.start = now, r.end = now + remaining, r.after_cut = true;
  changed_ = true;
  return r.gpus;
}

void Scheduler::measured(const std::string& task, double now, double remaining) {
  running_.at(task).end = now + remaining;
  changed_ = true;
}

void Scheduler::retime(const std::string& task, double seconds) {
  for (auto& t : waiting_)
    if (t.name == task && seconds > 0) t.seconds = seconds, changed_ = true;
}

double Scheduler::expected_end(const Running& r, double now) {
  return r.end > now ? r.end : now + std::max(0.05 * (now - r.start), 1e-3);
}

Problem Scheduler::problem(double now) const {
  Problem p{settings_.gpus, waiting_, {}};
  for (const auto& [name, r] : running_) p.running.push_back({int(r.gpus.size()), expected_end(r, now) - now});
  return p;
}

std::vector<Start> Scheduler::due(double now) {
  if (!changed_) return {};
  changed_ = false;
  const Problem p = problem(now);
  plan_ = plan(p, settings_.policy, settings_.limits);
  check(p, plan_);
  ++plans_;
  draw(now);
  std::vector<Start> starts;
  std::vector<Task> left;
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    const Task& t = waiting_[i];
    if (plan_.start[i] > 0) {
      left.push_back(t);
      continue;
    }
    starts.push_back({t.name, gpus_.take(t.gpus)});
    running_[t.name] = {now, now + t.seconds, starts.back().gpus};
  }
  waiting_ = std::move(left);
  return starts;
}

void Scheduler::draw(double now) {
  planned_.clear();
  Gpus gpus = gpus_;
  std::vector<std::size_t> ends;  // bars that hold GPUs, later freed
  for (const auto& [name, r] : running_)
    planned_.push_back({name, r.gpus, r.start, expected_end(r, now), r.after_cut}), ends.push_back(planned_.size() - 1);
  std::vector<std::size_t> order(waiting_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return plan_.start[a] < plan_.start[b]; });
  for (const std::size_t i : order) {
    const double start = now + plan_.start[i];
    std::erase_if(ends, [&](std::size_t b) {
      const bool over = planned_[b].end <= start * (1 + 1e-12) + 1e-9;
      if (over) gpus.release(planned_[b].gpus);
      return over;
    });
    planned_.push_back({waiting_[i].name, gpus.take(waiting_[i].gpus), start, start + waiting_[i].seconds, false});
    ends.push_back(planned_.size() - 1);
  }
}

}  // namespace trireme::cluster

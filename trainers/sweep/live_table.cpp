#include "trainers/sweep/live_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace trireme::sweep {
namespace {

std::string loss_text(double loss) {
  if (!std::isfinite(loss)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", loss);
  return text;
}

double last(const std::vector<double>& values) {
  return values.empty() ? std::numeric_limits<double>::quiet_NaN() : values.back();
}

// Jobs in the order of their phases.
std::vector<std::size_t> in_order(const std::vector<Roster::Entry>& jobs) {
  using Phase = Roster::Phase;
  std::vector<std::size_t> order;
  for (const Phase phase : {Phase::running, Phase::waiting, Phase::parked, Phase::queued, Phase::done, Phase::exited})
    for (std::size_t i = 0; i < jobs.size(); ++i)
      if (jobs[i].phase == phase) order.push_back(i);
  return order;
}

}  // namespace

const char* phase_name(Roster::Phase phase) {
  static const char* const names[] = {"queued", "running", "at the cut", "parked", "done", "exited"};
  return names[int(phase)];
}

std::int64_t leader(const Roster& roster) {
  std::int64_t best = -1;
  double loss = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < roster.jobs().size(); ++i) {
    const auto& e = roster.exits().job(roster.jobs()[i].load.job);
    if (e.best < loss && e.reason != "diverging" && e.reason != "underperforming")
      loss = e.best, best = std::int64_t(i);
  }
  return best;
}

std::vector<std::string> live_table(const std::string& head, const Roster& roster, int columns, int rows,
                                    std::size_t bytes) {
  const auto cut = [&](std::string line) {
    line.resize(std::min(line.size(), std::size_t(std::max(columns - 1, 0))));
    return line;
  };
  const auto& jobs = roster.jobs();
  int widest = 3;
  for (const auto& j : jobs) widest = std::max(widest, int(j.load.job.size()));
  const auto line = [&](const char* job, const char* state, const std::string& step, const std::string& train,
                        const std::string& val, const std::string& best, const char* mark) {
    char text[256];
    std::snprintf(text, sizeof text, "%-*s  %-15s %13s %9s %9s %9s%s", widest, job, state, step.c_str(), train.c_str(),
                  val.c_str(), best.c_str(), mark);
    return std::string(text);
  };
  constexpr const char* leading = " <- best";
  const std::size_t around = 32, a_line = cut(line("job", "state", "step", "train", "val", "best", leading)).size() + 2;
  const std::size_t above = around + cut(head).size();  // with what takes the one before from the screen
  rows = int(std::min(std::size_t(std::max(rows, 0)), 1 + (bytes - std::min(bytes, above)) / a_line));
  if (rows < 6) return {cut(head)};
  std::vector<std::string> lines{head, line("job", "state", "step", "train", "val", "best", "")};
  const std::size_t room = std::size_t(rows) - lines.size();
  const std::size_t shown = jobs.size() <= room ? jobs.size() : room - 1;
  const auto order = in_order(jobs);
  const std::int64_t leads = leader(roster);
  for (std::size_t k = 0; k < shown; ++k) {
    const auto& j = jobs[order[k]];
    const auto& e = roster.exits().job(j.load.job);
    lines.push_back(line(j.load.job.c_str(), e.reason.empty() ? phase_name(j.phase) : e.reason.c_str(),
                         std::to_string(j.step) + "/" + std::to_string(j.total_steps), loss_text(last(e.e)),
                         loss_text(last(e.v)), loss_text(e.best), std::int64_t(order[k]) == leads ? leading : ""));
  }
  if (shown < jobs.size()) lines.push_back("... and " + std::to_string(jobs.size() - shown) + " more");
  for (auto& l : lines) l = cut(std::move(l));
  return lines;
}

}  // namespace trireme::sweep

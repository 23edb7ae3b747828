// What waits and what runs, replanned at every event: an arrival, a completion, a cut (from then on what remains is
// known). Running tasks are pinned. It has no clock: simulator and live driver tell it the time (seconds of the run,
// never going back).
#pragma once
#include "framework/report/gantt.h"
#include "trainers/sweep/cluster/gpus.h"
#include "trainers/sweep/cluster/planner.h"

#include <map>
#include <string>
#include <vector>

namespace trireme::cluster {

struct Settings {
  int gpus = 1, per_node = 8;
  Policy policy = Policy::search;
  Limits limits;
};

struct Start {
  std::string task;
  std::vector<int> gpus;
};

class Scheduler {
 public:
  explicit Scheduler(const Settings& s) : settings_(s), gpus_(s.gpus, s.per_node) {}

  void arrive(const Task&);  // names are unique
  void complete(const std::string& task);
  // What remains takes `remaining` on the first `gpus` of its GPUs and `remaining_all` on all (0: no less). Gives the
  // others back at once if the plan then ends earlier, or all are no faster. Returns those kept.
  std::vector<int> cut(const std::string& task, double now, double remaining, int gpus, double remaining_all);
  // A running task ends in so many seconds; a waiting one will take so many.
  void measured(const std::string& task, double now, double remaining);
  void retime(const std::string& task, double seconds);
  // Tasks that start now. Replans if anything happened since the last call.
  std::vector<Start> due(double now);

  bool done() const { return waiting_.empty() && running_.empty(); }
  const std::vector<Task>& waiting() const { return waiting_; }
  int plans() const { return plans_; }
  const Plan& last_plan() const { return plan_; }
  // The last plan with its running tasks, in seconds of the run.
  const std::vector<GanttBar>& planned() const { return planned_; }

 private:
  struct Running {
    double start, end;  // expected end
    std::vector<int> gpus;
    bool after_cut = false;
  };
  // A task that overruns is expected to need a twentieth of its time more: never none, its GPUs are not free.
  static double expected_end(const Running& r, double now);
  Problem problem(double now) const;
  void draw(double now);

  Settings settings_;
  Gpus gpus_;
  std::vector<Task> waiting_;
  std::map<std::string, Running> running_;
  Plan plan_;
  std::vector<GanttBar> planned_;
  bool changed_ = true;
  int plans_ = 0;
};

}  // namespace trireme::cluster

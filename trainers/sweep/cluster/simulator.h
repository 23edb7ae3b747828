// The scheduler on a virtual clock, with durations that were recorded (or drawn): nothing sleeps, and the code that
// plans is the live driver's.
#pragma once
#include "trainers/sweep/cluster/scheduler.h"

#include <vector>

namespace trireme::cluster {

struct Recorded {
  Task task;              // seconds: what the planner is told
  double arrival = 0;     // seconds of the run
  double before_cut = 0;  // what it took until the cut; all of it where none came (after_cut = 0)
  double after_cut = 0;   // ... and from there on, on gpus_after GPUs
  int gpus_after = 0;
  double after_cut_all = 0;  // on all of its GPUs; 0: no less
  struct Told {
    double after, remaining;  // seconds since it started; seconds that it then said were left
  };
  std::vector<Told> told = {};  // in that order
  double after_cut_told = -1;   // seconds that it said at the cut were left; below 0: what it took
};

struct Trace {
  double makespan = 0;
  std::vector<GanttBar> plan, actual;  // plan: made when the last task had arrived
  int plans = 0;
  int unproved = 0;      // plans whose search hit its limit
  double worst_gap = 0;  // of those
};

Trace simulate(const Settings&, const std::vector<Recorded>&);

}  // namespace trireme::cluster

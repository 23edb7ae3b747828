// What a sweep's journal recorded, for the simulator.
#pragma once
#include "trainers/sweep/cluster/simulator.h"

#include <string>
#include <vector>

namespace trireme::cluster {

struct Recording {
  int gpus = 0;         // that it had, at most where it went on with another number
  int least_gpus = 0;   // ... and at least
  double makespan = 0;  // when the last of `tasks` was done, stops of the run apart
  // Those that are done, in the order of arrival, with what they told and what each took. The planner is told what it
  // was when the task started.
  std::vector<Recorded> tasks;
  int left_out = 0;  // failed, or not over
};

// Changes nothing. Throws DataError: no journal, a broken line, no task that is done.
Recording read_recording(const std::string& run_dir);

// The same tasks had no job exited: each takes what it said before its first step. Empty: one of them said nothing.
std::vector<Recorded> without_exits(const Recording&);

}  // namespace trireme::cluster

// A sweep's task on a terminal, a line a job.
#pragma once
#include "trainers/sweep/roster.h"

#include <string>
#include <vector>

namespace trireme::sweep {

// At most `rows` lines (fewer than 6 have room for `head` alone) of at most `columns` - 1 characters: `head`, names of
// the columns, then jobs as running, at the cut, parked, queued, done and exited (by its reason), each group as the
// task lists them, the best of the task marked; "... and N more" for those that find no room. Steps and losses are
// those of a job's last evaluation. Drawn by LiveLines it is at most `bytes` long.
std::vector<std::string> live_table(const std::string& head, const Roster& roster, int columns, int rows,
                                    std::size_t bytes = std::size_t(-1));

// The job that leads so far: the lowest loss of those that may win; -1: none was evaluated.
std::int64_t leader(const Roster& roster);
const char* phase_name(Roster::Phase phase);

}  // namespace trireme::sweep

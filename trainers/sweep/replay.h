// Replays a file of losses through the rules of early exit.
#pragma once
#include "trainers/sweep/early_exit.h"

#include <string>
#include <vector>

namespace trireme::sweep {

// FILE.jsonl: a first line {"task": "t", "total_steps": {"job": steps, ...}}, which may hold keys of EarlyExitConfig
// too, then in time order {"job", "step", "train_loss"} and {"job", "step", "val_loss"} (null: not finite); a line with
// both is read in this order. "too_large" of the first line lists jobs that never began, a later {"job", "step": 0,
// "too_large": true} is one that a sweep could not begin when it went on. What a job that has exited reports is not
// looked at. overrides: key=value of EarlyExitConfig. Throws DataError "file:line: what" for lines that say something
// else, UsageError for settings.
std::vector<Decision> replay(const std::string& file, const std::vector<std::string>& overrides);

}  // namespace trireme::sweep

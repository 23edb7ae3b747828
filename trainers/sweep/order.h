// A task as text, as the scheduler of tasks keeps it: a file with one task, or settings of a sweep and a task's name.
#pragma once
#include "trainers/sweep/config.h"

#include <string>

namespace trireme::sweep {

struct Order {
  SweepConfig sweep;  // with this task alone
  TaskConfig task;
};

// Throws UsageError.
Order read_order(const std::string& text);
// settings: those of the sweep (SweepConfig::settings). file: to begin an error, where it is not the sweep's own.
std::string write_order(const std::string& settings, const std::string& task, const std::string& file = {});
// A file with one task as it is handed in to another process, whose folder may be another: paths are whole.
std::string order_of(const std::string& file);

}  // namespace trireme::sweep

// Who ran where and when: as inline SVG for the report and as text for a terminal. Bars are one task's stretch on a
// fixed set of GPUs.
#pragma once
#include <string>
#include <vector>

namespace trireme {

struct GanttBar {
  std::string task;
  std::vector<int> gpus;      // ascending
  double start = 0, end = 0;  // seconds
  bool after_cut = false;     // drawn lighter: the survivors of an early exit
};

struct TaskSchedule {
  int gpus = 0;
  double planned_at = 0;  // of the last task that arrived: the plan that knows all
  std::vector<GanttBar> plan, actual;
};

// A line a GPU. end: of the time axis, so that plan and actual can share one; colours follow the order of `names`.
std::string gantt_chart(const std::string& title, const std::vector<GanttBar>& bars, int gpus, double end,
                        const std::vector<std::string>& names, int width);
// A row of letters a GPU over `columns` equal stretches of time; '.' is idle, a small letter follows a cut.
std::string gantt_text(const std::vector<GanttBar>& bars, int gpus, double end, const std::vector<std::string>& names,
                       int columns);
std::vector<std::string> task_names(const TaskSchedule&);  // in the order of their starts
double last_end(const TaskSchedule&);

// RUN/schedule.jsonl, as trainers/sweep/cluster/journal.h writes it. No GPUs where there is none; a torn last line is
// ignored, other broken lines throw DataError with file and line.
TaskSchedule read_schedule(const std::string& run_dir);

// Plan and actual beneath each other; empty where the folder has no schedule.
std::string schedule_section(const std::string& run_dir);

}  // namespace trireme

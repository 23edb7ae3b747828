// RUN/schedule.jsonl: what the inter-task scheduler planned and what happened, one JSON object a line, each with `t`
// (seconds of the run) and `event`. It is what a killed run resumes from and what the report draws.
//   begin gpus | arrive task gpus seconds text letter | plan arrived makespan bound optimal by bars | start task gpus
//   after_cut | measured task remaining | cut task gpus remaining | done task | failed task why code | refused letter
//   why | stop
#pragma once
#include "framework/base/agree.h"
#include "framework/io/file_io.h"
#include "trainers/sweep/cluster/scheduler.h"

#include <functional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace trireme::cluster {

class Journal {
 public:
  explicit Journal(const std::string& run_dir);

  void begin(double t, int gpus);
  // On disk when it returns: the letter may be put away.
  void arrive(double t, const Task& task, const std::string& text, const std::string& letter);
  void plan(double t, bool arrived, const Plan& plan, const std::vector<GanttBar>& bars);
  void start(double t, const Start& start, bool after_cut);
  void measured(double t, const std::string& task, double remaining);
  void cut(double t, const std::string& task, const std::vector<int>& kept, double remaining);
  void done(double t, const std::string& task);
  void failed(double t, const std::string& task, const Failure& why);
  void refused(double t, const std::string& letter, const std::string& why);
  void stop(double t);

 private:
  void write(double t, const char* event, nlohmann::json line);
  AppendFile file_;
};

// What a journal says of a run that ended or was killed.
struct Unfinished {
  Task task;  // seconds and GPUs: of what is left
  std::string text;
  bool started = false, after_cut = false;
};
struct Failed {
  Unfinished task;
  Failure why;
};
struct Recovered {
  double t = 0;                        // of its last line
  std::vector<Unfinished> unfinished;  // in the order of arrival
  std::vector<Failed> failed;          // since the last begin: a run that is begun again tries them again
  std::vector<Unfinished> done;
  std::set<std::string> tasks, letters;  // all that arrived, finished ones included
};
// Nothing where there is no journal. A torn last line is cut off the file; other broken lines, and a file that cannot
// be read, throw DataError.
Recovered recover(const std::string& run_dir);
// Calls `use` with each whole line of a run's journal; what it throws, and a line that is none, is DataError. None: no
// journal, no call.
void each_line(const std::string& run_dir, const std::function<void(const nlohmann::json&)>& use);
// Texts of all tasks that have arrived, in that order; changes nothing, so that the run may go on beside it.
std::vector<std::string> arrived(const std::string& run_dir);

}  // namespace trireme::cluster

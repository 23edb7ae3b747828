// What a task leaves in its folder as it runs, and says on the terminal. Rank 0's; others hold one that does nothing.
#pragma once
#include "framework/io/file_io.h"
#include "framework/metrics/progress.h"
#include "trainers/sweep/roster.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace trireme::sweep {

// decisions.jsonl: early_exit.h's Decision::json(), a line each. losses.jsonl: what `trireme sweep decide` replays, and
// decides the same on.
class Journal {
 public:
  Journal() = default;
  // header: the first line of losses.jsonl. Both files are written anew: a sweep that goes on calls restore.
  Journal(std::string folder, std::string task, const std::string& header);

  // Losses of a job's steps first + 1, ... up to the evaluation, and its validation loss.
  void losses(const std::string& job, std::int64_t first, const std::vector<double>& train, std::int64_t step,
              double v);
  void decided(const Decision& decision);
  void refused(const std::string& job);  // a job ends as too_large that the header does not name
  // A line: best so far, jobs by phase, exits by reason, time left; on a terminal, as the head of a table of the jobs
  // that is drawn in place. At most once in two seconds; `now`: the task is over, and the line alone stays.
  void progress(const Roster& roster, bool now);

  std::string save() const;  // for checkpoints
  void restore(const std::string& text);

 private:
  void write(const char* file, const std::string& line);
  std::string headline(const Roster& roster, double seconds);
  std::string folder_, task_;
  std::string losses_, decisions_;  // both files' text
  std::int64_t decided_ = 0;
  std::unique_ptr<LiveLines> live_;
  std::chrono::steady_clock::time_point begun_, told_{};
  double share_begun_ = -1;
};

// Has a task been saved in this folder?
bool saved_in(const std::string& folder);

}  // namespace trireme::sweep

// A sweep from its file to its page: backbones, tasks one after the other, winners, report.
#pragma once
#include "comm/communicator.h"
#include "framework/base/agree.h"
#include "trainers/sweep/executor.h"

#include <functional>
#include <optional>
#include <string>

namespace trireme::sweep {

// One task on the ranks of one executor, as a scheduler of tasks calls it. Reads model and data, runs, and writes
// FOLDER/{losses.jsonl, decisions.jsonl, result.json, winner/}. A task whose result.json is there is over: it is read.
// None where `stop` ended it: the same call goes on later. Errors of one rank are those of all.
std::optional<TaskOutcome> run_task(const SweepConfig& sweep, const TaskConfig& task, Communicator& ranks,
                                    const std::string& folder, const Placement& place = {},
                                    const std::function<bool()>& stop = {},
                                    std::function<void(const Roster&, const std::vector<Decision>&)> heard = {});

// Backbone and data of a task, read on every rank, or an error on all. An executor takes the backbone with it: what
// stayed here would stay whole.
struct TaskInputs {
  std::optional<Backbone> backbone;
  std::optional<Instructions> data;
  std::optional<BytePairTokenizer> tokenizer;
};
// folder: of the task; what its length leaves out of the data is told where it has saved nothing there.
TaskInputs read_inputs(const SweepConfig& sweep, const TaskConfig& task, Communicator& ranks, at::Device device,
                       const std::string& folder);
void write_outcome(const std::string& folder, const TaskOutcome& outcome, const TaskConfig& task);  // result.json
std::optional<TaskOutcome> read_outcome(const std::string& folder);                                 // none: not over

// What the tasks came to, as rank 0 knows it; `stopped` on every rank. A task that failed did so alone.
struct SweepEnd {
  struct FailedTask {
    std::string name;
    Failure why;
  };
  bool stopped = false;
  std::vector<TaskConfig> done;
  std::vector<FailedTask> failed;
};
// What a rank is asked (whether to stop), and what it says, of its own tasks alone: before a task's model is read,
// after each of its ticks, and where it has no task.
struct SweepHooks {
  std::function<bool()> stop;
  std::function<void()> starts = [] {}, ticked = [] {}, idle = [] {};
};
// Collective over the world: tasks beside each other, each on its own number of ranks, by the scheduler of tasks
// (cluster/driver.h); others may come by `trireme sweep add`, each a file with one task.
SweepEnd run_beside(const SweepConfig& sweep, Communicator& world, const std::string& out, const Placement& place,
                    const SweepHooks& hooks);

struct SweepRun {
  std::string file, out;
  std::vector<std::string> overrides;
  bool fresh = false;
};
// Collective: all tasks of the file, the tables on the terminal and report.html. The exit code: of the first task that
// failed or has no winner, each of which is told in a line at the end. Ranks that read different settings: UsageError.
int run_sweep(const SweepRun& run, Communicator& world, int local_ranks);

// result.json of a task.
std::string print_outcome(const TaskOutcome& outcome, const TaskConfig& task);
TaskOutcome parse_outcome(const std::string& json, const std::string& place);
// The jobs as a table, best first, and what was saved.
std::string outcome_table(const TaskOutcome& outcome, const TaskConfig& task);
// One page: of every task the table, losses, exits and samples saved; the schedule where the folder has one.
void write_page(const std::string& folder, const SweepConfig& sweep, const std::vector<TaskConfig>& tasks,
                const std::vector<TaskOutcome>& outcomes, const std::string& out_file);
// The same of a sweep's folder as it is, whether the sweep is over, runs, was stopped or killed.
void report_sweep(const std::string& folder, const std::string& out_file);

}  // namespace trireme::sweep

// The inter-task scheduler live: tasks of several ranks each, on sub-communicators of one MPI job. Rank 0 plans and
// keeps the journal; every rank, rank 0 too, is a GPU's rank of at most one task at a time.
//
// Rounds. Each rank posts an all-gather of what its task has to say, then a broadcast of rank 0's decision, and goes on
// ticking its task until each is complete; whether it is, the ranks of a task agree on after every tick (one value), so
// that all leave for a regrouping (`split` of the world, collective) before the same tick. Nothing is regrouped unless
// a task starts, ends or shrinks. Rank 0 plans between two of its own task's ticks.
#pragma once
#include "comm/communicator.h"
#include "trainers/sweep/cluster/scheduler.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace trireme::cluster {

struct TaskOrder {
  std::string name;
  std::string text;     // as it was handed in
  bool resume = false;  // it ran before: go on from what save() or a checkpoint left
};

struct TaskEvent {
  enum Kind { tick, measured, cut, done };  // measured: what is left is known better than when it was read
  Kind kind = tick;
  double remaining = 0;      // measured: seconds that are left; cut: on `ranks` ranks
  int ranks = 0;             // cut: of its ranks that it still wants, at most all
  double remaining_all = 0;  // cut: on all of its ranks; 0: no less than on `ranks`. The plan chooses
};

// One task on its ranks: a generator of events. Every call is collective over the communicator that it was made with,
// returns the same on all its ranks, and throws on all or on none; what it throws ends this task alone, except
// CommError.
class TaskRun {
 public:
  virtual ~TaskRun() = default;
  virtual TaskEvent tick() = 0;  // a bounded piece of work
  virtual void save() = 0;  // so that another TaskRun, on any ranks, goes on from here; nothing follows but the end
};

using StartTask = std::function<std::unique_ptr<TaskRun>(const TaskOrder&, Communicator&)>;
// A task as it was handed in, on rank 0: its name, ranks and predicted seconds. Throws UsageError.
using ReadTask = std::function<Task(const std::string& text)>;

struct DriveOptions {
  Settings settings;  // gpus: set to the world's size
  std::string run_dir;
  std::vector<std::string> tasks;                        // texts; those that the journal knows are not begun again
  std::function<bool()> stop;                            // a stop was asked for
  std::function<void(const std::string& line)> message;  // on rank 0
  // This rank's task has made one more step; and it has no task, once a round.
  std::function<void()> ticked = [] {}, idle = [] {};
};

struct DriveResult {
  bool stopped = false;  // all is saved; the same call goes on
  int done = 0, failed = 0;
  double seconds = 0;
};

// Collective over the world. Ends when nothing waits and nothing runs, or on a stop.
DriveResult drive(Communicator& world, const DriveOptions&, const ReadTask&, const StartTask&);

}  // namespace trireme::cluster

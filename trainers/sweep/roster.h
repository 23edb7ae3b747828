// Who runs where in a task: the life of every job over the ranks of its executor. Every rank holds the same roster and
// makes the same calls with the same events, so all decide alike and nothing but those events travels. Torch-free.
//
//   queued -> running -> [boundary] waiting -> [cut] running -> done
//   waiting -> parked while others need its place; running, waiting, parked -> exited
// A job that does not even fit alone has exited before it began.
#pragma once
#include "trainers/sweep/early_exit.h"
#include "trainers/sweep/packing.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme::sweep {

// An evaluation that is over, on the rank that holds the job.
struct Evaluated {
  std::int64_t job = 0, step = 0;
  double average = 0, loss = 0;
};

class Roster {
 public:
  enum class Phase { queued, running, waiting, parked, done, exited };
  struct Entry {
    Load load;
    std::int64_t total_steps = 0, step = 0;  // step: of its last evaluation
    Phase phase = Phase::queued;
    int rank = -1;  // that holds its state; -1: nobody yet
  };
  struct Move {
    enum Kind { start, park, resume, take } kind;  // take: a parked job comes from another rank
    std::int64_t job = 0;
    int rank = 0, from = -1;
  };

  Roster(const EarlyExitConfig& config, const MemoryLimit& limit, int ranks, bool steal, std::vector<Load> loads,
         std::vector<std::int64_t> total_steps);

  // What changes places now, in this order. A rank does those of its own.
  std::vector<Move> plan();
  // What an evaluation leads to.
  std::vector<Decision> hear(const Evaluated& event);

  const std::vector<Entry>& jobs() const { return jobs_; }
  // Of the jobs that do not fit alone, as they were when the roster was made.
  const std::vector<Decision>& too_large() const { return too_large_; }
  std::string needs(const Load& job) const;  // "needs 1.1 GB alone, and a rank has 0.9 GB"
  const EarlyExit& exits() const { return exits_; }
  std::int64_t index(const std::string& job) const;
  // The result of the task: the lowest validation loss of those done or overfitting, ties by name; -1: nobody.
  std::int64_t winner() const;

  std::string save() const;
  // Also of another number of ranks. Throws UsageError where a job that goes on does not fit any more.
  void load(const std::string& text);
  // Ends queued jobs that do not fit alone, as the roster does when it is made; to be called once all that was saved is
  // loaded. What is decided by it, the cut that waited for them included.
  std::vector<Decision> refuse();

 private:
  std::vector<Load> running(int rank) const;
  int place_for(const Entry& job) const;
  void leave(Entry& job, Phase phase);
  void follow();

  MemoryLimit limit_;
  int ranks_;
  bool steal_;
  std::vector<Entry> jobs_;
  EarlyExit exits_;
  std::vector<Decision> too_large_;
  std::optional<std::int64_t> freed_;  // batch size of the job that left last
};

}  // namespace trireme::sweep

// A bar with the time that is left, on rank 0's terminal: steps of batches. Its group stands for all.
#pragma once
#include "framework/metrics/progress.h"

#include <optional>

namespace trireme::sample {

class StepBar {
 public:
  // `shown`: on this rank, where there is a terminal. `total`: steps of the job.
  StepBar(bool shown, std::int64_t total);
  void step(std::int64_t steps);  // taken at once, one of each group's batch
  void skip(std::int64_t steps);  // that need not be taken: those of before
  void clear();                   // before something else is printed
  const ProgressState& state() const { return state_; }

 private:
  ProgressState state_;
  StepRate rate_;
  std::optional<ProgressBar> bar_;
};

}  // namespace trireme::sample

// `trireme eval RUN` where the recipe alone knows the weights: its own evaluation of what was held out.
#pragma once
#include "comm/communicator.h"

#include <string>

namespace trireme {

// Which weights a run folder holds (Recipe::model), "clip" also for what is no run of ours. UsageError for an unknown
// recipe.
std::string model_of(const std::string& path);

struct EvalRun {
  std::string run, data, predictions, device = "auto";  // data: in place of data.file; predictions: a file to write
  int threads = 0;
  bool json = false;
};
// Collective. Prints on rank 0; returns the exit code.
int evaluate_run(const EvalRun& options, Communicator& world);

}  // namespace trireme

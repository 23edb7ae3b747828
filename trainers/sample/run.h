// `trireme sample`: a job from its file to its sheet.
#pragma once
#include "comm/communicator.h"

#include <string>
#include <vector>

namespace trireme::sample {

struct SampleRun {
  std::string file, out;
  std::vector<std::string> overrides;
  bool fresh = false;
};

// Collective: all pictures of all arms, OUT/sheet.png, report.json and report.html. The exit code; 85 where a stop
// request ended it: the same command goes on. Ranks that read different settings: UsageError.
int run_sample(const SampleRun& run, Communicator& world, int local_ranks);

}  // namespace trireme::sample

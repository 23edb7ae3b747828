// The training loop, and what `trireme train` does on each rank.
#pragma once
#include "comm/communicator.h"
#include "framework/config/config.h"
#include "framework/train_config.h"

#include <string>

namespace trireme {

struct TrainOptions {
  std::string file;
  std::vector<std::string> overrides;
  std::string out;  // empty: runs/<yaml stem>
  int ranks = 0;    // 0: those it finds
  bool dry_run = false, print_config = false, fresh = false;
};

std::string run_dir_of(const TrainOptions& options);

// Of this process: `threads`, or its share of the machine's cores.
void set_threads(const TrainConfig& config, int local_ranks);
// Collective: the whole of `trireme train` on one rank. Returns the exit code (0 or 85); failures are thrown.
int train(const TrainOptions& options, Communicator& world, int local_ranks);

// Reads and checks the configuration (for `ranks` ranks, where that is known), nothing else.
void check_config(const TrainOptions& options);
// Prints the resolved configuration with the origin of every value.
void print_config(const TrainOptions& options);

}  // namespace trireme

// What `trireme scale` measures on one number of ranks, by the ranks themselves.
#pragma once
#include "comm/communicator.h"
#include "trainers/scale/model.h"

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace trireme::scale {

struct MeasureOptions {
  std::string file;
  std::vector<std::string> overrides;
  int steps = 20;      // timed ones, after a few that are not
  std::string folder;  // rank 0 writes measured.json and config.resolved.yaml there
};

// Collective: trains for some steps and times them, then collectives alone. Throws Error where the loss is not finite,
// and what a training throws.
int measure(const MeasureOptions& options, Communicator& world, int local_ranks);

// measured.json and back. Times in ms, of a collective alone in s.
nlohmann::json to_json(const Measured&);
Measured measured_of(const nlohmann::json&);

}  // namespace trireme::scale

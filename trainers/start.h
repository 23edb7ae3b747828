// What a run says of itself before its first step: to the user, and in env.json to those who read its folder later.
#pragma once
#include "framework/experiment.h"
#include "framework/session.h"
#include "trainers/run_folder.h"

#include <string>

namespace trireme {

// Lines of what will be trained, on what, with which data, and where it goes. `samples`: those it trains on; `step`:
// the step it goes on from.
std::string start_banner(const Experiment& setup, Session& session, const RunFolder& folder, std::int64_t samples,
                         std::int64_t step);

// JSON: what Recipe::describe says, and its charts.
std::string recipe_description(const Recipe& recipe);

}  // namespace trireme

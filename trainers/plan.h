// A recipe's plan (framework/plan.h) as text, with what the framework adds to it.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"

namespace trireme {

// On stdout: memory of a rank, and bytes that it sends in a step, a line each with its formula.
void print_plan(const Plan& plan, const TrainConfig& train, int ranks);

}  // namespace trireme

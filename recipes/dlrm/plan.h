// What a dry run tells of a rank.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/planner.h"

namespace trireme::dlrm {

// here: on this machine, so that without planner.memory_gib its memory is the limit of a rank.
Owners owners_of(const DlrmConfig& config, const TableData& data, std::int64_t dim, int ranks, const TrainConfig& train,
                 bool here);
void plan_dlrm(Plan& plan, const DlrmConfig& config, int ranks, const TrainConfig& train);

}  // namespace trireme::dlrm

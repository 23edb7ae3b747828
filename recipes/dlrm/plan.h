// What a dry run tells of a rank.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/planner.h"

namespace trireme::dlrm {

double machine_memory();  // bytes

// memory: bytes that a rank may hold where planner.memory_gib does not say; the same on all ranks, as the plan must be.
Owners owners_of(const DlrmConfig& config, const TableData& data, std::int64_t dim, int ranks, const TrainConfig& train,
                 double memory);
void plan_dlrm(Plan& plan, const DlrmConfig& config, int ranks, const TrainConfig& train);

}  // namespace trireme::dlrm

// What a dry run tells of a rank.
#pragma once
#include "framework/context.h"
#include "framework/plan.h"
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/planner.h"

namespace trireme::dlrm {

// Bytes of the machine, or of a GPU, for each of so many ranks that share it. 0: not known here.
double share_of_memory(at::Device device, int sharing);
// Collective: the same on all ranks, the least of theirs; infinite for a run that goes on.
double memory_of_ranks(Context& c);

// memory: bytes that a rank may hold where planner.memory_gib does not say; the same on all ranks, as the plan must be.
Owners owners_of(const DlrmConfig& config, const TableData& data, std::int64_t dim, int ranks, const TrainConfig& train,
                 double memory);
// With what a run would refuse: UsageError, DataError.
void plan_dlrm(Plan& plan, const DlrmConfig& config, int ranks, const TrainConfig& train);

}  // namespace trireme::dlrm

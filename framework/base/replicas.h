// What ranks tell each other about their parameters: they may hold different ones, but those that share one must agree
// on it.
#pragma once
#include "comm/communicator.h"
#include "framework/base/param.h"

#include <string>
#include <vector>

namespace trireme {

// Collective over `world`, which numbers the ranks. The names of all ranks' parameters, each once, equal on all ranks:
// in order of registration where all ranks have the same ones. Throws Error naming the parameter, on all ranks, where
// two ranks that share one differ in its type or shape, where one of its replicas lacks it, or where `rows` overlap or
// leave gaps.
std::vector<std::string> all_names(const std::vector<Param>& params, Communicator& world);

// Collective, checks as all_names(): fills in how each parameter is saved, see Param::sharing.
void settle_sharing(std::vector<Param>& params, Communicator& world);

// Of the whole parameter, what this rank holds: its rows where it is held by rows.
at::Tensor own_part(const Param& param, const at::Tensor& whole);

// How ranks hold the elements `slice` of a parameter that is cut over its replicas.
Sharing sharing_of(const Param& param, const Slice& slice);

}  // namespace trireme

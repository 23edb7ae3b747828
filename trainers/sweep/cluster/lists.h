// List schedules: whenever GPUs fall free, the first waiting tasks of a list that fit start.
#pragma once
#include "trainers/sweep/cluster/problem.h"

#include <string_view>

namespace trireme::cluster {

enum class Order { arrival, shortest, longest, size, area };  // size: by GPUs, then seconds; all but shortest descend
std::string_view name(Order);

std::vector<int> ordered(const Problem&, Order);

// skip: a task that does not fit lets later ones go first. Without, the list is strict (first in, first out).
Plan list_schedule(const Problem&, const std::vector<int>& list, bool skip = true);

}  // namespace trireme::cluster

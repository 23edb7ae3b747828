#include "trainers/watched.h"

#include "framework/context.h"
#include "trainers/launch.h"

namespace trireme {

Watched::Watched(Communicator& world, const WatchdogConfig& limits, const std::string& folder, Steps steps)
    : ranks(world, trace_sink(), "job"),
      watchdog(ranks, {.warn = limits.warn,
                       .first = limits.first,
                       .later = limits.later,
                       .folder = folder,
                       .follow_parent = launched_ranks() > 0,
                       .apart = steps == Steps::apart}) {}

}  // namespace trireme

// A job that everything talks through is recorded, and ended where a rank hangs: by the keys `watchdog` of its file.
#pragma once
#include "comm/watchdog/watchdog.h"
#include "comm/wrappers/traced.h"
#include "framework/config/watchdog.h"

#include <string>

namespace trireme {

// together: every step is every rank's, so whoever does not come in time hangs. apart: see Watchdog::Options.
enum class Steps { together, apart };

struct Watched {
  // Collective. `folder`: where ranks leave their last calls when the job hangs.
  Watched(Communicator& world, const WatchdogConfig& limits, const std::string& folder, Steps steps);

  Traced ranks;  // "job"; what is derived and split from it is watched too
  Watchdog watchdog;
};

}  // namespace trireme

// The keys `watchdog` of every job of several ranks (comm/watchdog, trainers/watched.h).
#pragma once
#include "framework/config/config.h"

namespace trireme {

struct WatchdogConfig {
  double first = 1800, later = 600, warn = 60;  // seconds
  bool operator==(const WatchdogConfig&) const = default;
  void fields(Fields& f);
};

}  // namespace trireme

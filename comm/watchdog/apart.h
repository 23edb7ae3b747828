// Ranks that rightly work for long without each other: what one of them that waits for others hears of them, and when
// it has to call the job hung. Belongs to the thread of a watchdog.
#pragma once
#include "comm/watchdog/hang_report.h"

#include <utility>
#include <vector>

namespace trireme {

class WorkApart {
 public:
  // Seconds; 0: none. allowed: of this rank. waited: in its oldest open call.
  struct Limits {
    double warn = 0, allowed = 0;
  };
  // Has it waited for so long that the others should be asked? In good time, so that one that does not answer at the
  // limit was heard of before it, or has been silent for half of it.
  static bool worth_asking(double waited, const Limits& limits);
  // Fills in quiet and allowed of all: of a silent rank by what was heard of it, or since this one waits. `now`:
  // seconds of a steady clock.
  void remember(std::vector<RankView>& ranks, double now, double waited, const Limits& limits);

  // This rank did not run for so long. Perhaps the others did not either: that time is no silence of theirs.
  void stood_still(double seconds);
  static double pause(const Limits& limits);  // seconds until others are asked again, at most

  struct Verdict {
    bool hangs = false, late = false;  // late: by `warn`, and no lower rank waits so long, which would say it
    double ask_again = 0;              // in so many seconds
  };
  static Verdict judge(std::vector<RankView> ranks, int rank, double waited, const Limits& limits);  // rank: this one
  static constexpr double ask_every = 60;                                                            // seconds at most

 private:
  std::vector<std::pair<double, double>> signs_;  // of each rank the last that was heard of, and what it is allowed
};

}  // namespace trireme

// What steps of a task take, learnt while it runs: a constant a pass (launches, agreement of ranks) and a time a token.
// Torch-free; it has no clock.
#pragma once
#include "trainers/sweep/packing.h"

#include <cstdint>
#include <deque>
#include <span>

namespace trireme::sweep {

class Pace {
 public:
  // So many steps in a row, of `tokens` together, took that long, the device idle before and after. Not those that warm
  // up: the first steps of other jobs than before make plans and are recorded. An epoch's last
  // batches, which are smaller, come too seldom to be recorded: where they count, they count as the slower steps they
  // are.
  void add(std::int64_t passes, double tokens, double seconds);
  static constexpr std::int64_t warm_passes = 3;

  // How long a step of so many tokens will take. Where steps of several sizes were seen: their least squares; of one
  // size: as `prior` says (none: by tokens), made as slow as what was seen. In any case as fast as the last ones were.
  double step_seconds(double tokens, std::span<const Profiled> prior) const;
  bool known() const { return !seen_.empty(); }

 private:
  struct Seen {
    double passes, tokens, seconds;
  };
  std::deque<Seen> seen_;
};

}  // namespace trireme::sweep

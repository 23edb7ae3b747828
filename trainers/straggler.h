// Finds ranks that hold up the others.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace trireme {

class StragglerReport {
 public:
  explicit StragglerReport(int ranks) : slow_(std::size_t(ranks)) {}

  // own_ms: each rank's mean time a step outside of waits for other ranks, over `steps` steps since the last call.
  // Returns the ranks that by now have needed `ratio` times the median in `lines` calls, `least_steps` steps and
  // `least_ms` of their time in a row; each is returned once, until it has been as fast as the others again.
  std::vector<int> look(std::span<const double> own_ms, std::int64_t steps);
  // Of an even number of ranks the lower one: of two the faster.
  static double median(std::span<const double> values);

  static constexpr double ratio = 1.5;
  static constexpr std::int64_t lines = 3, least_steps = 10;
  static constexpr double least_ms = 500;  // short steps: something else on a core for some ms is not a slow rank

 private:
  struct Slow {
    std::int64_t lines = 0, steps = 0;
    double ms = 0;
    bool enough() const { return lines >= StragglerReport::lines && steps >= least_steps && ms >= least_ms; }
  };
  std::vector<Slow> slow_;  // in a row
};

}  // namespace trireme

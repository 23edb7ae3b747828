#include "trainers/straggler.h"

#include <algorithm>

namespace trireme {

double StragglerReport::median(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  const auto middle = sorted.begin() + std::ptrdiff_t((sorted.size() - 1) / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

std::vector<int> StragglerReport::look(std::span<const double> own_ms, std::int64_t steps) {
  const double limit = ratio * median(own_ms);
  std::vector<int> named;
  for (std::size_t r = 0; r < own_ms.size(); ++r) {
    if (own_ms[r] < limit) {
      slow_lines_[r] = slow_steps_[r] = 0;
      continue;
    }
    const bool before = slow_lines_[r] >= lines && slow_steps_[r] >= least_steps;
    ++slow_lines_[r];
    slow_steps_[r] += steps;
    if (!before && slow_lines_[r] >= lines && slow_steps_[r] >= least_steps) named.push_back(int(r));
  }
  return named;
}

}  // namespace trireme

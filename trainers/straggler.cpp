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
    Slow& slow = slow_[r];
    if (own_ms[r] < limit) {
      slow = {};
      continue;
    }
    const bool before = slow.enough();
    ++slow.lines;
    slow.steps += steps;
    slow.ms += own_ms[r] * double(steps);
    if (!before && slow.enough()) named.push_back(int(r));
  }
  return named;
}

}  // namespace trireme

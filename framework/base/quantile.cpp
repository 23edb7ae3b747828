#include "framework/base/quantile.h"

#include <algorithm>
#include <cstddef>

namespace trireme {

double quantile(std::vector<double> v, double q) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  const double at = q * double(v.size() - 1);
  const auto i = std::size_t(at);
  const double next = i + 1 < v.size() ? v[i + 1] : v[i];
  return v[i] + (at - double(i)) * (next - v[i]);
}

}  // namespace trireme

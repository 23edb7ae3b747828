#pragma once
#include <vector>

namespace trireme {

// Of sorted or unsorted values, linear between neighbours; 0 if there are none.
double quantile(std::vector<double> values, double q);

}  // namespace trireme

// Thresholds of reuse that a run with cache.base: fit reported, for the runs that use them.
#pragma once
#include <string>

namespace trireme {

// From report.json of such a run: of its pictures' thresholds for the share `skip` (within 0.02) the median. DataError:
// no such file, none in it; UsageError: several arms fitted, or none for that share, the shares that are there named.
double fitted_base(const std::string& report, double skip);

}  // namespace trireme

// The largest of many differences, for tests.
#pragma once

namespace trireme::test {

// Of two, the larger; NaN if either is NaN. std::max(worst, difference) drops a NaN, and a result that is all NaN
// would pass its bound; `EXPECT_LE(worst, bound)` of this one fails.
inline double nan_max(double a, double b) { return b > a || b != b ? b : a; }

}  // namespace trireme::test

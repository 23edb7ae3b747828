// For gradient norms on host memory.
#pragma once
#include <cstdint>

namespace trireme::kernels {

// Sum of x[i]^2 with f64 accumulators: one long f32 sum is wrong in the fourth digit at ten million elements. T: float
// or double. The order of the sum is fixed.
template <class T>
double sum_of_squares(const T* x, std::int64_t n);

}  // namespace trireme::kernels

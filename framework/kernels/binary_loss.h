// Binary cross entropy of logits and its gradient, f32 and f64, in one pass and one launch. On the host and on CUDA;
// sums are of f64. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>
#include <cstdint>

namespace trireme::kernels {

// All pointers of the place.
template <class T>
struct BinaryLossJob {
  const T *logits, *labels;  // [n], labels within [0, 1]
  std::int64_t n;
  double divisor;
  T* loss;      // sum of max(x, 0) - x y + log(1 + exp(-|x|)), by the divisor
  T* gradient;  // [n] of that: (sigmoid(x) - y) / divisor
};

template <class T>
TRIREME_BOTH T binary_loss_of(T x, T y, T& gradient) {
  const T e = std::exp(-std::fabs(x));
  gradient = (x >= 0 ? 1 / (1 + e) : e / (1 + e)) - y;
  return (x > 0 ? x : T(0)) - x * y + std::log1p(e);
}

extern Kernel<BinaryLossJob<float>> binary_loss_f32;
extern Kernel<BinaryLossJob<double>> binary_loss_f64;
inline void binary_loss(const BinaryLossJob<float>& job, Place place) { binary_loss_f32(job, place); }
inline void binary_loss(const BinaryLossJob<double>& job, Place place) { binary_loss_f64(job, place); }

}  // namespace trireme::kernels

#include "framework/kernels/sum_of_squares.h"

#include "comm/clones.h"

namespace trireme::kernels {
namespace {

constexpr std::int64_t lanes = 16;

template <class T>
__attribute__((always_inline)) inline double run(const T* x, std::int64_t n) {
  double lane[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::int64_t k = 0; k < lanes; ++k) lane[k] += double(x[i + k]) * double(x[i + k]);
  double sum = 0;
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  for (const double v : lane) sum += v;
  return sum;
}

TRIREME_CLONES double run_f32(const float* x, std::int64_t n) { return run(x, n); }
TRIREME_CLONES double run_f64(const double* x, std::int64_t n) { return run(x, n); }

}  // namespace

template <>
double sum_of_squares(const float* x, std::int64_t n) {
  return run_f32(x, n);
}
template <>
double sum_of_squares(const double* x, std::int64_t n) {
  return run_f64(x, n);
}

}  // namespace trireme::kernels

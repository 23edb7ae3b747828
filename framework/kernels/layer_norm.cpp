#include "framework/kernels/layer_norm.h"

#include "framework/kernels/blocks.h"

#include <cmath>

namespace trireme::kernels {

template <class T>
void layer_norm(const T* x, const T* gamma, const T* beta, double eps, T* y, T* mean, T* rstd, std::int64_t rows,
                std::int64_t width) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* xr = x + r * width;
    T* yr = y + r * width;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t c = 0; c < width; ++c) sum += xr[c];
    const T m = sum / T(width);
    T square = 0;
#pragma omp simd reduction(+ : square)
    for (std::int64_t c = 0; c < width; ++c) square += (xr[c] - m) * (xr[c] - m);
    const T s = T(1) / std::sqrt(square / T(width) + T(eps));
    mean[r] = m;
    rstd[r] = s;
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) yr[c] = (xr[c] - m) * s * gamma[c] + beta[c];
  }
}

template <class T>
void layer_norm_again(const T* x, const T* gamma, const T* beta, const T* mean, const T* rstd, T* y, std::int64_t rows,
                      std::int64_t width) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    const T m = mean[r], s = rstd[r];
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) y[r * width + c] = (x[r * width + c] - m) * s * gamma[c] + beta[c];
  }
}

template <class T>
void layer_norm_backward(const T* dy, const T* x, const T* gamma, const T* mean, const T* rstd, const T* residual,
                         T* dx, T* dgamma, T* dbeta, std::int64_t rows, std::int64_t width) {
  std::vector<T> both(2 * width);
  sum_columns_by_block<T>(rows, 2 * width, both.data(), [&](std::int64_t begin, std::int64_t end, T* sums) {
    T *sum_gamma = sums, *sum_beta = sums + width;
    for (std::int64_t r = begin; r < end; ++r) {
      const T *dyr = dy + r * width, *xr = x + r * width;
      const T m = mean[r], s = rstd[r];
      T a = 0, b = 0;  // sums of dy*gamma and dy*gamma*xhat
#pragma omp simd reduction(+ : a, b)
      for (std::int64_t c = 0; c < width; ++c) {
        const T hat = (xr[c] - m) * s, g = dyr[c] * gamma[c];
        a += g;
        b += g * hat;
        sum_gamma[c] += dyr[c] * hat;
        sum_beta[c] += dyr[c];
      }
      a /= T(width);
      b /= T(width);
      T* dxr = dx + r * width;
      if (residual) {
        const T* rr = residual + r * width;
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) dxr[c] = rr[c] + s * (dyr[c] * gamma[c] - a - (xr[c] - m) * s * b);
      } else {
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) dxr[c] = s * (dyr[c] * gamma[c] - a - (xr[c] - m) * s * b);
      }
    }
  });
  for (std::int64_t c = 0; c < width; ++c) {
    dgamma[c] = both[c];
    dbeta[c] = both[width + c];
  }
}

#define TRIREME_LAYER_NORM(T)                                                                                       \
  template void layer_norm(const T*, const T*, const T*, double, T*, T*, T*, std::int64_t, std::int64_t);           \
  template void layer_norm_again(const T*, const T*, const T*, const T*, const T*, T*, std::int64_t, std::int64_t); \
  template void layer_norm_backward(const T*, const T*, const T*, const T*, const T*, const T*, T*, T*, T*,         \
                                    std::int64_t, std::int64_t);
TRIREME_LAYER_NORM(float)
TRIREME_LAYER_NORM(double)

}  // namespace trireme::kernels

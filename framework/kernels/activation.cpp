#include "framework/kernels/activation.h"

#include "framework/kernels/blocks.h"

#include <bit>
#include <cmath>
#include <limits>

namespace trireme::kernels {
namespace {

// exp for the vectoriser: 2^n * polynomial on [-ln2/2, ln2/2]; below 1 ulp over the range used. Flushes under e^-87.
inline float exp_simd(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits hold round(x / ln 2)
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<std::int32_t>(shifted) + 127) << 23);
}
inline double exp_simd(double x) { return std::exp(x); }

// Standard normal cdf and pdf. f32: Abramowitz and Stegun 7.1.26 (absolute error 7.5e-8), which needs one exp for both.
inline void normal(float x, float& cdf, float& pdf) {
  const float e = exp_simd(-0.5f * x * x), a = std::fabs(x) * 0.70710678f;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  const float tail =
      0.5f * e * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  cdf = x < 0 ? tail : 1.0f - tail;
  pdf = 0.39894228f * e;
}
inline void normal(double x, double& cdf, double& pdf) {
  cdf = 0.5 * std::erfc(-x * 0.70710678118654752440);
  pdf = 0.39894228040143267794 * std::exp(-0.5 * x * x);
}

struct Gelu {
  template <class T>
  static void apply(T x, T& y, T& slope) {
    T cdf, pdf;
    normal(x, cdf, pdf);
    y = x * cdf;
    slope = cdf + x * pdf;
  }
};

struct QuickGelu {
  template <class T>
  static void apply(T x, T& y, T& slope) {
    const T s = T(1) / (T(1) + exp_simd(T(-1.702) * x));
    y = x * s;
    slope = s * (T(1) + T(1.702) * x * (T(1) - s));
  }
};

template <class Act, class T>
void forward(T* z, const T* bias, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    T *zr = z + r * width, *yr = y + r * width;
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      T slope;
      zr[c] += bias[c];
      Act::apply(zr[c], yr[c], slope);
    }
  }
}

template <class Act, class T>
void backward(const T* z, T* dy, T* y, T* dbias, std::int64_t rows, std::int64_t width) {
  sum_columns_by_block<T>(rows, width, dbias, [&](std::int64_t begin, std::int64_t end, T* sums) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* zr = z + r * width;
      T *dr = dy + r * width, *yr = y + r * width;
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) {
        T slope, value;
        Act::apply(zr[c], value, slope);
        const T d = dr[c] * slope;
        yr[c] = value;
        dr[c] = d;
        sums[c] += d;
      }
    }
  });
}

}  // namespace

template <class T>
void bias_activation(Activation act, T* z, const T* bias, T* y, std::int64_t rows, std::int64_t width) {
  act == Activation::gelu ? forward<Gelu>(z, bias, y, rows, width) : forward<QuickGelu>(z, bias, y, rows, width);
}

template <class T>
void activation_backward(Activation act, const T* z, T* dy, T* y, T* dbias, std::int64_t rows, std::int64_t width) {
  act == Activation::gelu ? backward<Gelu>(z, dy, y, dbias, rows, width)
                          : backward<QuickGelu>(z, dy, y, dbias, rows, width);
}

template <class T>
void bias_relu(T* z, const T* bias, bool relu, std::int64_t rows, std::int64_t width) {
  const T least = relu ? T(0) : -std::numeric_limits<T>::infinity();
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (std::int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      const T v = z[r * width + c] + bias[c];
      z[r * width + c] = v < least ? least : v;
    }
}

template <class T>
void relu_backward(const T* y, const T* dy, T* dz, T* dbias, std::int64_t rows, std::int64_t width) {
  sum_columns_by_block<T>(rows, width, dbias, [&](std::int64_t begin, std::int64_t end, T* sums) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T *yr = y + r * width, *from = dy + r * width;
      T* to = dz + r * width;
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) {
        const T d = from[c];  // read in any case: a masked load would keep this loop from being vectorised
        const T passed = yr[c] <= T(0) ? T(0) : d;
        to[c] = passed;
        sums[c] += passed;
      }
    }
  });
}

template <class T>
void bias_residual(const T* x, const T* bias, T* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) y[r * width + c] = x[r * width + c] + (y[r * width + c] + bias[c]);
}

template <class T>
void column_sums(const T* x, T* sums, std::int64_t rows, std::int64_t width) {
  sum_columns_by_block<T>(rows, width, sums, [&](std::int64_t begin, std::int64_t end, T* block) {
    for (std::int64_t r = begin; r < end; ++r)
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) block[c] += x[r * width + c];
  });
}

#define TRIREME_ACTIVATION(T)                                                                      \
  template void bias_activation(Activation, T*, const T*, T*, std::int64_t, std::int64_t);         \
  template void activation_backward(Activation, const T*, T*, T*, T*, std::int64_t, std::int64_t); \
  template void bias_relu(T*, const T*, bool, std::int64_t, std::int64_t);                         \
  template void relu_backward(const T*, const T*, T*, T*, std::int64_t, std::int64_t);             \
  template void bias_residual(const T*, const T*, T*, std::int64_t, std::int64_t);                 \
  template void column_sums(const T*, T*, std::int64_t, std::int64_t);
TRIREME_ACTIVATION(float)
TRIREME_ACTIVATION(double)

}  // namespace trireme::kernels

// Quickshift (Vedaldi and Soatto, ECCV 2008) as scikit-image computes it, in f64: every pixel points at the nearest
// pixel of higher density; trees of short links are segments. Host and CUDA run the same arithmetic, so labels are
// equal to the bit. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trireme::kernels {

// All memory is the place's. pixels = rows * columns < 2^31; kernel_size > 0.
struct QuickshiftJob {
  const double* features = nullptr;  // [batch, channels, rows, columns], scaled already
  const double* noise = nullptr;     // [batch, rows, columns] normals: they break ties
  std::int64_t batch = 0, channels = 0, rows = 0, columns = 0;
  double kernel_size = 3, max_dist = 6;
  std::int32_t* labels = nullptr;    // [batch, rows, columns] of 0 .. segments - 1, in the order of the roots
  std::int32_t* segments = nullptr;  // [batch]
  void* scratch = nullptr;           // quickshift_scratch() bytes, aligned to 8

  TRIREME_BOTH std::int64_t pixels() const { return rows * columns; }
  TRIREME_BOTH double* density() const { return static_cast<double*>(scratch); }
  TRIREME_BOTH std::int32_t* parent() const { return reinterpret_cast<std::int32_t*>(density() + batch * pixels()); }
};
extern Kernel<QuickshiftJob> quickshift;
constexpr std::size_t quickshift_scratch(std::int64_t batch, std::int64_t pixels) {
  return static_cast<std::size_t>(batch * pixels) * (sizeof(double) + sizeof(std::int32_t));
}

namespace quickshift_pixel {

// exp(x) for x <= 0, within 2 units in the last place: a library's is another on every machine. Taylor's series on
// half an octave, times a power of two made of its bits.
TRIREME_BOTH inline double decay(double x) {
  constexpr double inverse_factorial[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  if (x < -700) return 0;
  const int k = static_cast<int>(x * 1.4426950408889634 - 0.5);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double sum = inverse_factorial[13];
  for (int i = 12; i >= 0; --i) sum = sum * r + inverse_factorial[i];
  const std::int64_t bits = static_cast<std::int64_t>(k + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

TRIREME_BOTH inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
TRIREME_BOTH inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// visit(pixel, squared distance of features and place) for the window around `pixel`, row by row.
template <class Visit>
TRIREME_BOTH void each_neighbour(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel, Visit visit) {
  const std::int64_t n = job.pixels(), row = pixel / job.columns, column = pixel % job.columns;
  const double* features = job.features + image * job.channels * n;
  std::int64_t reach = static_cast<std::int64_t>(3 * job.kernel_size);  // ceil
  if (static_cast<double>(reach) < 3 * job.kernel_size) ++reach;
  const std::int64_t last_row = smaller(job.rows - 1, row + reach), last = smaller(job.columns - 1, column + reach);
  for (std::int64_t r = larger(0, row - reach); r <= last_row; ++r)
    for (std::int64_t c = larger(0, column - reach); c <= last; ++c) {
      double d2 = 0;
      for (std::int64_t ch = 0; ch < job.channels; ++ch) {
        const double d = features[ch * n + pixel] - features[ch * n + r * job.columns + c];
        d2 += d * d;
      }
      d2 += static_cast<double>((row - r) * (row - r));
      d2 += static_cast<double>((column - c) * (column - c));
      visit(r * job.columns + c, d2);
    }
}

TRIREME_BOTH inline void density(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel) {
  const double factor = -0.5 / (job.kernel_size * job.kernel_size);
  double sum = 0;
  each_neighbour(job, image, pixel, [&](std::int64_t, double d2) { sum += decay(d2 * factor); });
  const std::int64_t at = image * job.pixels() + pixel;
  job.density()[at] = sum + 1e-5 * job.noise[at];
}

TRIREME_BOTH inline void parent(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel) {
  const double* density = job.density() + image * job.pixels();
  std::int64_t best = pixel;
  double nearest = 0;
  bool found = false;
  each_neighbour(job, image, pixel, [&](std::int64_t other, double d2) {
    if (density[other] > density[pixel] && (!found || d2 < nearest)) best = other, nearest = d2, found = true;
  });
  // A square root as it is written: rounding decides about links of just this length.
  if (!found || sqrt(nearest) > job.max_dist) best = pixel;
  job.parent()[image * job.pixels() + pixel] = static_cast<std::int32_t>(best);
}

TRIREME_BOTH inline std::int32_t root(const std::int32_t* parent, std::int32_t pixel) {
  while (parent[pixel] != pixel) pixel = parent[pixel];
  return pixel;
}

}  // namespace quickshift_pixel
}  // namespace trireme::kernels

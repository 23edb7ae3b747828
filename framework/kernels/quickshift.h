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
  TRIREME_BOTH std::int64_t reach() const {  // of the window around a pixel
    const auto whole = static_cast<std::int64_t>(3 * kernel_size);
    return whole + (static_cast<double>(whole) < 3 * kernel_size);
  }
  // What is farther along an axis is no link.
  TRIREME_BOTH std::int64_t link_reach() const {
    return max_dist < static_cast<double>(reach()) ? static_cast<std::int64_t>(max_dist) : reach();
  }
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

// Neighbours whose distances are summed up beside each other: each sum is a chain that waits for itself.
constexpr int abreast = 5;

// visit(pixel, squared distance of features and place) for row `r` of the window around `pixel`, `reach` to both sides.
template <class Visit>
TRIREME_BOTH void each_neighbour(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel, std::int64_t r,
                                 std::int64_t reach, Visit visit) {
  const std::int64_t n = job.pixels(), row = pixel / job.columns, column = pixel % job.columns;
  const double* features = job.features + image * job.channels * n;
  const std::int64_t last = smaller(job.columns - 1, column + reach);
  for (std::int64_t c = larger(0, column - reach); c <= last; c += abreast) {
    const std::int64_t first = r * job.columns + c;
    const int there = static_cast<int>(smaller(abreast, last - c + 1));
    double d2[abreast] = {};
    for (std::int64_t ch = 0; ch < job.channels; ++ch) {
      const double own = features[ch * n + pixel];
      const double* theirs = features + ch * n + first;
      for (int i = 0; i < abreast; ++i) {
        const double d = own - theirs[i < there ? i : 0];
        d2[i] += d * d;
      }
    }
    for (int i = 0; i < abreast; ++i) {
      if (i >= there) continue;
      const std::int64_t across = column - c - i;
      d2[i] += static_cast<double>((row - r) * (row - r));
      d2[i] += static_cast<double>(across * across);
      visit(first + i, d2[i]);
    }
  }
}

// The part of a pixel's density that row `r` of its window adds; rows are added up in their order.
TRIREME_BOTH inline double density_of_row(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel,
                                          std::int64_t r) {
  const double factor = -0.5 / (job.kernel_size * job.kernel_size);
  double sum = 0;
  each_neighbour(job, image, pixel, r, job.reach(), [&](std::int64_t, double d2) { sum += decay(d2 * factor); });
  return sum;
}

TRIREME_BOTH inline void set_density(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel, double sum) {
  const std::int64_t at = image * job.pixels() + pixel;
  job.density()[at] = sum + 1e-5 * job.noise[at];
}

// The nearest pixel of higher density so far; ties go to the first.
struct Nearest {
  double d2;
  std::int32_t pixel;  // -1: none
  TRIREME_BOTH void offer(std::int32_t other, double other_d2) {
    if (pixel < 0 || other_d2 < d2) pixel = other, d2 = other_d2;
  }
};

TRIREME_BOTH inline Nearest nearest_of_row(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel,
                                           std::int64_t r) {
  const double* density = job.density() + image * job.pixels();
  const double own = density[pixel];
  Nearest nearest{0, -1};
  each_neighbour(job, image, pixel, r, job.link_reach(), [&](std::int64_t other, double d2) {
    if (density[other] > own) nearest.offer(static_cast<std::int32_t>(other), d2);
  });
  return nearest;
}

TRIREME_BOTH inline void set_parent(const QuickshiftJob& job, std::int64_t image, std::int64_t pixel,
                                    const Nearest& nearest) {
  // A square root as it is written: rounding decides about links of just this length.
  const bool linked = nearest.pixel >= 0 && !(sqrt(nearest.d2) > job.max_dist);
  job.parent()[image * job.pixels() + pixel] = linked ? nearest.pixel : static_cast<std::int32_t>(pixel);
}

TRIREME_BOTH inline std::int32_t root(const std::int32_t* parent, std::int32_t pixel) {
  while (parent[pixel] != pixel) pixel = parent[pixel];
  return pixel;
}

}  // namespace quickshift_pixel
}  // namespace trireme::kernels

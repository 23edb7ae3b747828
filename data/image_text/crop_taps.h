// The weights of the antialiased resize along one axis, one code for host and device. (C++17: nvcc sees it.)
//
// As Pillow: bicubic with a = -0.5 or bilinear, the kernel widens with the reduction, normalised weights are rounded to
// whole numbers of 22 bits, and levels are rounded between the passes. Sums of whole numbers are the same in any order,
// so twins agree bit for bit; the f64 arithmetic below must not be contracted.
#pragma once
#include "comm/both.h"

#include <cstdint>

namespace trireme {

enum class Filter : std::int32_t { bicubic, bilinear };

struct ResizeAxis {
  double begin, length;  // the stretch of input that becomes the output, in pixels of the region
  int extent;            // pixels of the region: taps stay within
  int out;               // pixels of the output
  Filter filter = Filter::bicubic;
};

// Pillow 13 takes the columns first where that removes more than twice as many rows as there are columns to remove
// (found by trial on 10,000 sizes; up to Pillow 12 rows come first always). Sizes are of the whole pictures.
inline bool down_first(int width, int height, int new_width, int new_height) {
  return new_height < height && height - new_height > 2 * (width - new_width);
}

inline constexpr int weight_bits = 22;

TRIREME_BOTH inline double stretch_of(const ResizeAxis& a) {
  const double scale = a.length / a.out;
  return scale > 1 ? scale : 1;
}

// How far from its middle a kernel reaches.
TRIREME_BOTH inline double support_of(Filter f) { return f == Filter::bicubic ? 2 : 1; }

// No output pixel has more, of either kernel.
TRIREME_BOTH inline int most_taps(double stretch) { return 2 * int(2 * stretch + 1) + 1; }

struct TapRange {
  int first, count;
};

// Input pixels that output pixel i sees; at least one.
TRIREME_BOTH inline TapRange taps_at(const ResizeAxis& a, int i) {
  const double center = a.begin + (i + 0.5) * (a.length / a.out), support = support_of(a.filter) * stretch_of(a);
  const double low = center - support + 0.5, high = center + support + 0.5;
  const int first = low > 0 ? int(low) : 0, last = high < a.extent ? int(high) : a.extent;
  return {first, last - first};
}

TRIREME_BOTH inline double kernel_at(Filter f, double x) {
  x = x < 0 ? -x : x;
  if (f == Filter::bilinear) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

// Their weights: whole numbers that add up to about 2^weight_bits.
TRIREME_BOTH inline void weights_at(const ResizeAxis& a, int i, const TapRange& taps, std::int32_t* out) {
  const double center = a.begin + (i + 0.5) * (a.length / a.out), shrink = 1 / stretch_of(a);
  double sum = 0;
  for (int k = 0; k < taps.count; ++k) sum += kernel_at(a.filter, (taps.first + k - center + 0.5) * shrink);
  for (int k = 0; k < taps.count; ++k) {
    const double w = kernel_at(a.filter, (taps.first + k - center + 0.5) * shrink) / sum * (1 << weight_bits);
    out[k] = w < 0 ? static_cast<std::int32_t>(w - 0.5) : static_cast<std::int32_t>(w + 0.5);
  }
}

}  // namespace trireme

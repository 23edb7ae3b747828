// What SDiT (reconstruction) chooses tokens by: how complex each pixel is, which place its region takes, and the first
// of many keys. Host and CUDA come to the same bits: floating-point sums have one order, all others are of whole
// numbers. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trireme::kernels {

// out = w0 n(|Scharr g|) + w1 n(|Laplacian g|) + w2 n(mean over channels |x - x0|): g the channel mean of x0, n from
// least to largest of a batch element to [0, 1], 3x3 stencils in a frame whose border repeats.
struct ComplexityJob {
  const float *x = nullptr, *x0 = nullptr;  // [batch, channels, frames, rows, columns]
  std::int64_t batch = 0, channels = 0, frames = 0, rows = 0, columns = 0;
  float weight[3] = {};
  float* out = nullptr;     // [batch, frames, rows, columns]
  void* scratch = nullptr;  // complexity_scratch() bytes, aligned to 4

  TRIREME_BOTH std::int64_t pixels() const { return frames * rows * columns; }
  // Map 0: g, 1: Scharr's, 2: Laplace's, 3: what is left of the noise.
  TRIREME_BOTH float* map(std::int64_t b, int k) const { return static_cast<float*>(scratch) + (b * 4 + k) * pixels(); }
  // Of map k + 1, as bits: largest, and the complement of the least.
  TRIREME_BOTH std::uint32_t* extremes(std::int64_t b, int k) const {
    return reinterpret_cast<std::uint32_t*>(static_cast<float*>(scratch) + batch * 4 * pixels()) + (b * 3 + k) * 2;
  }
};
extern Kernel<ComplexityJob> complexity;
constexpr std::size_t complexity_scratch(std::int64_t batch, std::int64_t pixels) {
  return static_cast<std::size_t>(batch * (4 * pixels + 6)) * 4;
}

// Of every pixel, which place its region takes: by the mean of the largest ceil(q n) complexities of the region's n
// pixels, then by label. Complexities count in whole 2^-28, from -8 to 8.
struct RegionPlacesJob {
  const std::int64_t* labels = nullptr;   // [batch, pixels], below its batch element's `regions`
  const std::int64_t* regions = nullptr;  // [batch], at most pixels
  const float* complexity = nullptr;      // [batch, pixels]
  double q = 1;
  std::int64_t batch = 0, pixels = 0;  // pixels < 2^31
  float* places = nullptr;             // [batch, pixels]
  void* scratch = nullptr;             // region_places_scratch() bytes, aligned to 8

  TRIREME_BOTH double* score(std::int64_t b) const { return static_cast<double*>(scratch) + b * pixels; }
  // Of regions: 0 pixels in it, 1 places before its own, 2 where its values begin; of pixels: 3 which of its region it
  // is, 4 values, region by region. One more for each batch element: values that have a place.
  TRIREME_BOTH std::int32_t* whole(std::int64_t b, int k) const {
    return reinterpret_cast<std::int32_t*>(score(batch)) + (k * batch + b) * pixels;
  }
  TRIREME_BOTH std::int32_t* taken(std::int64_t b) const { return whole(batch, 4) + b; }
};
extern Kernel<RegionPlacesJob> region_places;
constexpr std::size_t region_places_scratch(std::int64_t batch, std::int64_t pixels) {
  return static_cast<std::size_t>(batch * pixels) * (8 + 5 * 4) + static_cast<std::size_t>(batch) * 4;
}

// chosen [batch, count], ascending: the count first of n by (key, index). A NaN comes last.
struct FirstKeysJob {
  const float* keys = nullptr;               // [batch, n]
  std::int64_t batch = 0, n = 0, count = 0;  // 0 < count <= n < 2^31
  std::int64_t* chosen = nullptr;
};
extern Kernel<FirstKeysJob> first_keys;

namespace region_choice {

TRIREME_BOTH inline std::uint32_t bits_of(float v) {
  std::uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
TRIREME_BOTH inline float float_of(std::uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// g and what is left of the noise at one pixel.
TRIREME_BOTH inline void means(const ComplexityJob& job, std::int64_t b, std::int64_t p, float& g, float& noise) {
  const std::int64_t n = job.pixels(), first = b * job.channels * n + p;
  float sum = 0, left = 0;
  for (std::int64_t c = 0; c < job.channels; ++c) {
    const float v = job.x0[first + c * n];
    sum += v;
    left += fabsf(job.x[first + c * n] - v);
  }
  g = sum / static_cast<float>(job.channels);
  noise = left / static_cast<float>(job.channels);
}

TRIREME_BOTH inline void stencils(const ComplexityJob& job, const float* g, std::int64_t p, float& scharr,
                                  float& laplacian) {
  const std::int64_t row = p / job.columns % job.rows, column = p % job.columns;
  const std::int64_t up = row > 0 ? -job.columns : 0, down = row + 1 < job.rows ? job.columns : 0;
  const std::int64_t left = column > 0 ? -1 : 0, right = column + 1 < job.columns ? 1 : 0;
  const float *a = g + p + up, *m = g + p, *z = g + p + down;
  const float along = (3 * (z[left] - a[left]) + 10 * (z[0] - a[0]) + 3 * (z[right] - a[right])) / 16;
  const float across = (3 * (a[right] - a[left]) + 10 * (m[right] - m[left]) + 3 * (z[right] - z[left])) / 16;
  scharr = sqrtf(along * along + across * across);
  laplacian = fabsf(a[0] + z[0] + m[left] + m[right] - 4 * m[0]);
}

TRIREME_BOTH inline float combined(const ComplexityJob& job, std::int64_t b, std::int64_t p) {
  float sum = 0;
  for (int k = 0; k < 3; ++k) {
    const std::uint32_t* extremes = job.extremes(b, k);
    const float least = float_of(~extremes[1]), range = float_of(extremes[0]) - least;
    sum += job.weight[k] * ((job.map(b, k + 1)[p] - least) / (range > 1e-20F ? range : 1e-20F));
  }
  return sum;
}

// As whole 2^-28, moved up by 2^31; a NaN is the least.
TRIREME_BOTH inline std::uint32_t counted(float complexity) {
  const double v = rint(static_cast<double>(complexity) * (1 << 28));
  if (!(v > -2147483648.0)) return 0;
  return v < 2147483647.0 ? static_cast<std::uint32_t>(static_cast<std::int64_t>(v) + 2147483648LL) : 0xFFFFFFFFU;
}

TRIREME_BOTH inline std::int64_t kept(std::int64_t pixels, double q) {
  const auto n = static_cast<std::int64_t>(ceil(static_cast<double>(pixels) * q));
  return n > 1 ? n : 1;
}

// Whole numbers in the order of keys; -0 is 0.
TRIREME_BOTH inline std::uint32_t ordered(float key) {
  if (key != key) return 0xFFFFFFFFU;
  const std::uint32_t bits = bits_of(key + 0.0F);
  return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

}  // namespace region_choice
}  // namespace trireme::kernels

// Rounding to multiples of 2 eb, and back. (C++17 below the host's part: nvcc sees it.)
//   code = round_half_even(x / step), step = 2 eb;  x' = code * step;  all f32, each operation rounded once.
#pragma once
#include "compression/stages/format.h"

#include <cstddef>
#include <vector>

namespace trireme::coding {

// n rows of dim values, `stride` floats apart.
struct Rows {
  const float* at = nullptr;
  std::size_t n = 0, dim = 0, stride = 0;
  const float* row(std::size_t r) const { return at + r * stride; }
  std::size_t values() const { return n * dim; }
};

struct Range {
  float min = 0, max = 0;  // of the finite values; both 0 where there is none
  bool any = false, nonfinite = false;
  void add(const Range& other);
};
Range range_of(const Rows& rows);

// Non-finite values are not its concern.
inline Bound bound_for(const Range& range, float bound, bool relative) {
  return bound_for(range.min, range.max, bound, relative);
}

struct Outlier {
  std::uint32_t index;
  float value;
};

// Codes of a chunk, as they lie: int32 first, shifted to begin at 0 and narrowed to bytes or u16 by `narrow`.
struct Codes {
  std::vector<std::int32_t> wide;  // n * dim
  std::int32_t min = 0;
  std::uint32_t span = 1;         // of the codes: max - min + 1
  std::vector<Outlier> outliers;  // those that would miss the bound
};
void quantize(const Rows& rows, float eb, bool strict, Codes& codes);
// x' of all values, the outliers' own; `to` may be the rows.
void dequantize(const Codes& codes, const Rows& rows, float eb, float* to, std::size_t stride);

template <class Code>
void narrow(const Codes& codes, std::vector<Code>& to);

// Rows of `width` bytes that differ, by first appearance.
struct Dedup {
  std::vector<std::uint32_t> index;   // of each row: the number of its unique row
  std::vector<std::uint32_t> unique;  // of each unique row: where it is first
};
void dedup(const std::uint8_t* rows, std::size_t n, std::size_t stride, std::size_t width, Dedup& to);

}  // namespace trireme::coding

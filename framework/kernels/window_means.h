// Mean absolute values over windows of a torus canvas, which tell a tile cache how much a tile has moved (SuperGen).
// All windows in one pass on the host or in one launch on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

inline constexpr std::int64_t most_starts = 64;  // windows along an axis
inline constexpr std::int64_t most_differences = 4;
inline constexpr std::int64_t parts_of_a_window =
    64;  // sums of a window are taken apart and added in order: the same bits each time

// For each window and each d < differences: the mean of |a[d] - b[d]|, of |a[d]| where b[d] is null. Canvases are
// contiguous [planes, rows, columns] of one type, f32, bf16 or f64; the sum is taken in f64. Windows are the product of
// row starts and column starts (their first row and column), and wrap; a start of -1 stands for an absent one, whose
// means are 0.
struct WindowMeansJob {
  const void* a[most_differences] = {};
  const void* b[most_differences] = {};
  std::int64_t differences = 0;
  DType dtype = DType::f32;
  std::int64_t planes = 0, rows = 0, columns = 0;
  std::int64_t window_rows = 0, window_columns = 0;
  std::int64_t row_starts = 0, column_starts = 0;  // how many
  std::int32_t row_start[most_starts] = {}, column_start[most_starts] = {};
  double* partial = nullptr;  // scratch of the place: row_starts * column_starts * parts_of_a_window * differences
  float* means = nullptr;     // [row_starts * column_starts, differences], of the place
};
extern Kernel<WindowMeansJob> window_means;

}  // namespace trireme::kernels

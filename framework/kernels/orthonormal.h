// What PowerSGD asks of its factors. On the host and on CUDA, which differ by the rounding of f64 sums. (C++17: nvcc
// sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// A matrix of f32 [count, length], rows one after another.
struct RowMatrix {
  float* data = nullptr;
  const float* start = nullptr;  // restart_rows: what a row that is lost begins with again
  std::int64_t count = 0, length = 0;
};

// The rows of each matrix become orthonormal, as by Gram and Schmidt: the products of all rows and what follows from
// them in f64, so that rows are read once and rounded once. A row that depends on those before it, to 1e-6 of its
// length, becomes zero; a row that is not finite becomes NaN, or has NaN where it is not finite.
struct OrthonormalJob {
  const RowMatrix* matrices = nullptr;
  std::int64_t count = 0, most_rows = 0;
  double* scratch = nullptr;  // on CUDA: orthonormal_scratch values
};
inline constexpr int orthonormal_splits = 16;  // of the columns, each with sums of its own
inline std::int64_t orthonormal_scratch(std::int64_t count, std::int64_t most_rows) {
  return count * (orthonormal_splits + 1) * most_rows * most_rows;
}
extern Kernel<OrthonormalJob> orthonormalize;

// A row whose sum of squares (rounded to f32) is zero or not finite becomes its `start` again: as it is it would stay
// so. *lost becomes 1 where one was not finite, and stays what it is otherwise.
struct RestartJob {
  const RowMatrix* matrices = nullptr;
  std::int64_t count = 0;
  float* lost = nullptr;
};
extern Kernel<RestartJob> restart_rows;

}  // namespace trireme::kernels

// What PowerSGD asks of its factors. On the host and on CUDA, which differ by the rounding of f64 sums. (C++17: nvcc
// sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// A matrix of f32 [count, length], rows one after another.
struct Rows {
  float* data = nullptr;
  const float* start = nullptr;  // restart_rows: what a row that is lost begins with again
  std::int64_t count = 0, length = 0;
};

// The rows of each matrix become orthonormal, by modified Gram-Schmidt with sums in f64. A row that depends on those
// before it becomes zero; a row that is not finite becomes NaN.
struct OrthonormalJob {
  const Rows* matrices = nullptr;
  std::int64_t count = 0;
};
extern Kernel<OrthonormalJob> orthonormalize;

// A row whose sum of squares (rounded to f32) is zero or not finite becomes its `start` again: as it is it would stay
// so. *lost becomes 1 where one was not finite, and stays what it is otherwise.
struct RestartJob {
  const Rows* matrices = nullptr;
  std::int64_t count = 0;
  float* lost = nullptr;
};
extern Kernel<RestartJob> restart_rows;

}  // namespace trireme::kernels

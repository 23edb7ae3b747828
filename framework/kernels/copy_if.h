// What a step leaves behind is put back, or brought to another unit, where a number says so that the host does not
// read. On the host and on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// to[i] = from[i], or 0 where `from` is null, if *flag is not 0. All of the place.
struct CopyIfJob {
  const float* flag = nullptr;
  float* to = nullptr;
  const float* from = nullptr;
  std::int64_t count = 0;
};
extern Kernel<CopyIfJob> copy_if;

// at[i] *= *factor; nothing is touched where that is 1. All of the place.
struct RescaleJob {
  const float* factor = nullptr;
  float* at = nullptr;
  std::int64_t count = 0;
};
extern Kernel<RescaleJob> rescale;

}  // namespace trireme::kernels

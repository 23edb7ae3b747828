// Unit normal values whose rows are keyed by a sample's number, so that a sample meets the same noise on any rank:
// Philox4x32-10 (Salmon et al., SC'11) and Box-Muller in f32. Host and CUDA differ in the last bits of log and sine.
// (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// to[r * columns + c], f32, a function of (key, draw, ids[r], c). All of the place.
struct NormalRowsJob {
  std::uint32_t key[2] = {};
  std::uint32_t draw = 0;             // of the same sample: an epoch
  const std::int64_t* ids = nullptr;  // [rows]; their low 32 bits count
  float* to = nullptr;
  std::int64_t rows = 0, columns = 0;
};
extern Kernel<NormalRowsJob> normal_rows;

}  // namespace trireme::kernels

// Rows of a matrix as e4m3 with a scale each: the largest of a row becomes 448 (Micikevicius et al., arXiv 2209.05433).
// A row that holds a value that is not finite gets a scale that is none, so that products show it. On the host and on
// CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// A row whose largest value is less counts as if it were this: one over its scale must be a number, and a row of zeros
// must not stand out where scales multiply something else.
constexpr float fp8_least = 1e-30f;

struct Fp8RowsJob {
  DType type = DType::bf16;  // or f32
  const void* x = nullptr;   // [rows, width], begins on 16 bytes; width a multiple of 8
  std::uint8_t* codes = nullptr;
  float* scales = nullptr;         // [rows]; what codes are multiplied by
  const float* columns = nullptr;  // [width], or null: what x's columns are multiplied by first; begins on 16 bytes
  std::int64_t rows = 0, width = 0;
};
extern Kernel<Fp8RowsJob> fp8_rows;

}  // namespace trireme::kernels

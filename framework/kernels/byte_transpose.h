// A matrix of bytes the other way round: to[c][r] = from[r][c]. On the host and on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

struct ByteTransposeJob {
  const std::uint8_t* from = nullptr;  // [rows, columns], either a multiple of 4; begins on 4 bytes, as `to` does
  std::uint8_t* to = nullptr;          // [columns, rows]
  std::int64_t rows = 0, columns = 0;
};
extern Kernel<ByteTransposeJob> byte_transpose;

}  // namespace trireme::kernels

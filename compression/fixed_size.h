// Codecs whose codes of n values are all equally long, made of two kernels: they run on the host and, where the twins
// are linked, on a CUDA stream, with the same bits. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstddef>
#include <cstdint>

namespace trireme {

// With `error`, in + before is encoded and what the code loses is left in `error` (which may be `before`), 0 where that
// is not finite. At least one value.
struct EncodeJob {
  const float* in = nullptr;
  const float* before = nullptr;
  float* error = nullptr;
  std::size_t count = 0;
  std::uint8_t* code = nullptr;
};

// The values of `codes` codes of `count` values summed in their order; `add`: behind what is in `out`. At least one
// code and one value.
struct DecodeJob {
  static constexpr std::size_t most = 8;
  const std::uint8_t* code[most] = {};
  std::size_t codes = 0;
  bool add = false;
  float* out = nullptr;
  std::size_t count = 0;
};

}  // namespace trireme

// What the error-bounded codec of flat values needs beside its coding. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstddef>
#include <cstdint>

namespace trireme {

// sum = in + before, value by value.
struct CompensateJob {
  const float *in = nullptr, *before = nullptr;
  float* sum = nullptr;
  std::size_t count = 0;
};

// error holds what the codes of `sum` stand for, and then what a receiver of its code loses; 0 where that is not
// finite, and for a chunk that travels as it is since its codes are longer. Codes lie side by side, `sizes` bytes each.
struct LossJob {
  const float* sum = nullptr;
  float* error = nullptr;
  std::size_t count = 0;
  const std::uint8_t* codes = nullptr;
  const std::uint64_t* sizes = nullptr;
  std::size_t number = 0;  // of this one
};

// out = values[0] + values[1] + ... in that order, `codes` rows of count values each; may be `values` itself. NaN where
// a code was bad: nobody waits to throw.
struct SumCodesJob {
  const float* values = nullptr;
  std::size_t codes = 1, count = 0;
  const std::uint32_t* status = nullptr;  // of decoding
  float* out = nullptr;
};

extern Kernel<CompensateJob> compensate_flat;
extern Kernel<LossJob> keep_flat_loss;
extern Kernel<SumCodesJob> sum_flat_codes;

}  // namespace trireme

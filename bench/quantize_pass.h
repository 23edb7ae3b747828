// What a lossless coder of bytes needs before and after it: values to codes of one byte and back, with an error bound
// of each chunk's own range. Two launches and one; a fair stand-in for what its users would write. (C++17: nvcc sees
// it.)
#pragma once
#include "comm/twins.h"

#include <cstddef>
#include <cstdint>

namespace trireme::bench {

constexpr unsigned quantize_parts = 32;  // blocks a chunk

// chunks of `each` values; bound: of max - min. codes: round(value / (2 eb)); steps: 2 eb of each chunk;
// partial: f32, 2 * quantize_parts * chunks of scratch.
struct QuantizePass {
  const float* values;
  std::size_t chunks, each;
  float bound;
  std::int8_t* codes;
  float* steps;
  float* partial;
};
struct DequantizePass {
  const std::int8_t* codes;
  std::size_t chunks, each;
  const float* steps;
  float* values;
};

extern Kernel<QuantizePass> quantize_pass;
extern Kernel<DequantizePass> dequantize_pass;

}  // namespace trireme::bench

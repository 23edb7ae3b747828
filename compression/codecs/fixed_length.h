// Error-bounded: values are rounded to multiples of 2*bound, and each block of 32 stores its codes with as many bits
// as its largest needs (block-wise fixed-length encoding, as in cuSZp, SC'23, without its prediction: gradients and
// embeddings have no neighbours worth predicting). A block whose values a code cannot hold within the bound, or that
// holds a non-finite one, is stored as it is. bound 0 stores everything as it is.
// Layout of a chunk: f64 step; a byte a block (bits a code, or `raw`), zeros up to a multiple of 4; then the words of
// each block: word k has bit k of its 32 codes, or they are its f32 values. Shared by the host (fixed_length.cpp) and
// its CUDA twin. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"
#include "compression/stages/format.h"

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace trireme {

namespace fixed_length {

constexpr std::uint32_t block = 32, raw = 0xff, most_bits = 30;

TRIREME_SHARED std::size_t blocks_of(std::size_t count) { return (count + block - 1) / block; }
TRIREME_SHARED std::size_t width_bytes(std::size_t count) { return (blocks_of(count) + 3) / 4 * 4; }
TRIREME_SHARED std::size_t header_bytes(std::size_t count) { return sizeof(double) + width_bytes(count); }
// Values of block b, 0 behind the last.
TRIREME_SHARED std::uint32_t values_of(std::size_t count, std::size_t b) {
  if (b * block >= count) return 0;
  return static_cast<std::uint32_t>(count - b * block < block ? count - b * block : block);
}
// Words of a block of n values.
TRIREME_SHARED std::uint32_t words_of(std::uint32_t width, std::uint32_t n) { return width == raw ? n : width; }
TRIREME_SHARED bool is_width(std::uint32_t width) { return width <= most_bits || width == raw; }

TRIREME_SHARED double step_of(double bound) { return bound > 0 && 2 * bound <= 1.7976931348623157e308 ? 2 * bound : 0; }

TRIREME_SHARED std::uint32_t zigzag(std::int32_t q) {
  return (static_cast<std::uint32_t>(q) << 1) ^ static_cast<std::uint32_t>(q >> 31);
}
TRIREME_SHARED float value_of(std::uint32_t code, double step) {
  return static_cast<float>((static_cast<std::int32_t>(code >> 1) ^ -static_cast<std::int32_t>(code & 1)) * step);
}

// The code of a value, inverse = 1 / step. False: it does not fit, or would miss the bound.
TRIREME_SHARED bool to_code(float v, double step, double inverse, double bound, std::uint32_t& code) {
  const double x = v * inverse;
  const bool inside = fabs(x) < (1 << (most_bits - 2));  // false for NaN
  code = zigzag(static_cast<std::int32_t>(nearbyint(inside ? x : 0)));
  return inside && fabs(static_cast<double>(value_of(code, step)) - v) <= bound;
}

}  // namespace fixed_length

// The jobs of its kernels, which exist on a GPU alone. Chunks lie in host memory, of less than 2^31 values each;
// first_block: of this chunk in the scratch memory, a multiple of 4; blocks: of all.
struct FixedLengthEncode {
  struct Chunk {
    const float *in = nullptr, *before = nullptr;
    float* error = nullptr;  // or null: no error feedback; may be `before`
    double step = 0, bound = 0;
    std::uint32_t count = 0, first_block = 0;
  };
  const Chunk* chunks = nullptr;
  std::size_t count = 0, blocks = 0;
  std::uint8_t* out = nullptr;
  std::uint64_t* sizes = nullptr;
  std::uint8_t* scratch = nullptr;

  // Words of each block, where they go, its width.
  static constexpr std::size_t scratch_bytes(std::size_t blocks) { return blocks * (4 * fixed_length::block + 4 + 1); }
};

struct FixedLengthDecode {
  struct Chunk {
    const std::uint8_t* code = nullptr;
    float* out = nullptr;
    std::uint64_t bytes = 0;  // less than a header has: bad
    std::uint32_t count = 0, first_block = 0;
    bool add = false;  // to what is in `out`
  };
  const Chunk* chunks = nullptr;
  std::size_t count = 0, blocks = 0;
  std::uint8_t* scratch = nullptr;

  // Where the words of each block are; is the chunk good?
  static constexpr std::size_t scratch_bytes(std::size_t blocks, std::size_t chunks) { return 4 * (blocks + chunks); }
};

extern Kernel<FixedLengthEncode> encode_fixed_length;
extern Kernel<FixedLengthDecode> decode_fixed_length;

}  // namespace trireme

// The error-bounded codec on a GPU: the jobs of its kernels (bounded_encode.cu, bounded_decode.cu), which know every
// encoder. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"
#include "compression/stages/frequencies.h"

#include <cstddef>
#include <cstdint>

namespace trireme {

namespace coding {
// Encoders by the kernel they have: those of SC'24; dedup_sparse and rows of fp8 by lanes; all others, of which rANS
// needs all registers.
enum class Family : std::uint8_t { others, paper, lanes };
}  // namespace coding

struct DeviceChunk {
  const float* rows = nullptr;
  float* self = nullptr;
  const float* bound_at = nullptr;  // set: the bound lies there
  std::uint64_t slot_at = 0;        // in the scratch memory: this chunk's code, and what its making needs
  std::uint32_t n = 0, dim = 1, stride = 1, self_stride = 1;
  float bound = 0;
  std::uint32_t number = 0;                   // in the call
  std::uint32_t first_piece = 0, pieces = 0;  // of values, for the range
  std::uint32_t first_of_scope = 0, pieces_of_scope = 0;
  coding::Encoder only = coding::encoders;  // coding::encoders: auto
  std::uint8_t window = 32;                 // of vector_lz
  std::uint8_t code_width = 0;
  coding::Family family = coding::Family::others;  // set by the kernels' launch
};
constexpr std::size_t piece_values = 8192;  // at least; a piece is whole rows

// A CodePart (bounded.h).
struct DevicePart {
  std::uint64_t at = 0, bytes = 0;
  std::uint32_t first = 0, chunks = 0;  // chunks by their number
};

struct DeviceEncode {
  const DeviceChunk* chunks = nullptr;  // in host memory, in the order of their pieces
  std::size_t count = 0, pieces = 0;
  bool relative = true, strict = true;
  std::uint8_t* out = nullptr;
  std::uint64_t* sizes = nullptr;
  std::uint8_t* scratch = nullptr;
  const DevicePart* parts = nullptr;  // in host memory
  std::size_t part_count = 0;         // 0: bare codes
};

struct PieceRange {
  float min, max;
  std::uint32_t any, nonfinite;
};
TRIREME_SHARED std::size_t multiple_of_16(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
// Scratch memory of encoding begins with descriptions and ranges of pieces; then come the slots.
TRIREME_SHARED std::size_t encode_tables(std::size_t chunks, std::size_t pieces) {
  return multiple_of_16(chunks * sizeof(DeviceChunk)) + multiple_of_16(pieces * sizeof(PieceRange));
}

// Where a chunk's slot has what; all multiples of 16.
struct SlotLayout {
  std::size_t code, words, spill, bytes;
};
TRIREME_SHARED SlotLayout slot_layout(std::size_t n, std::size_t dim) {
  const std::size_t values = n * dim;
  SlotLayout s{};
  s.code = 0;
  s.words = multiple_of_16(16384 + 4 * values + 16 * n);
  s.spill = s.words + multiple_of_16(2 * (values + 4 * n) + 64);
  s.bytes = s.spill + multiple_of_16(2 * values + 64 * n + 65536);
  return s;
}

struct DeviceDecode {
  struct Chunk {
    const std::uint8_t* code = nullptr;
    float* rows = nullptr;
    std::uint64_t spill_at = 0;  // in the scratch memory
    std::uint32_t bytes = 0, n = 0, dim = 1, stride = 1;
    std::uint32_t of = 0, number = 0;  // as CodedChunk's
  };
  const Chunk* chunks = nullptr;  // in host memory
  std::size_t count = 0;
  std::uint32_t* status = nullptr;
  std::uint8_t* scratch = nullptr;
};
// Of decoding, each chunk.
TRIREME_SHARED std::size_t decode_spill(std::size_t n, std::size_t dim) {
  return multiple_of_16(4 * n * dim + 64 * n + 136 * 1024);
}

extern Kernel<DeviceEncode> encode_bounded;
extern Kernel<DeviceDecode> decode_bounded;

}  // namespace trireme

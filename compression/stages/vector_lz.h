// LZSS whose symbol is a whole row (the vector-LZ of SC'24, arXiv 2407.04272): a match copies a run of rows from at
// most `window` rows before, which it does not overlap. Blocks of 2048 rows stand alone. Layout: u16 tokens of each
// block; u32 data bytes of each block but the last; then of each block its flags (a bit a token, 1: match) and its
// data: rows as they are, matches as u8 length, u8 distance.
#pragma once
#include "compression/stages/bytes.h"
#include "compression/stages/frequencies.h"

namespace trireme::coding {

struct LzCounts {
  std::size_t matches = 0, covered = 0;  // tokens that are matches, and their rows
};
// window: 1 to 255. Stops, and returns false, where `out` grows beyond `most` bytes.
bool encode_vector_lz(const std::uint8_t* rows, std::size_t n, std::size_t width, std::uint32_t window,
                      std::size_t most, Bytes& out, LzCounts* counts = nullptr);
// rows[n * width]. Throws BadStream.
void decode_vector_lz(std::span<const std::uint8_t> bytes, std::size_t n, std::size_t width, std::uint8_t* rows);

}  // namespace trireme::coding

// Entropy coding of symbols below 256, whose decoding is parallel: Huffman in sub-streams, and interleaved rANS (below
// one bit a symbol). Both describe themselves; how many symbols they hold is known outside.
#pragma once
#include "compression/stages/bytes.h"
#include "compression/stages/frequencies.h"

#include <array>

namespace trireme::coding {

using SymbolCounts = std::array<std::uint32_t, most_symbols>;
// Adds n symbols to one of the four counts: neighbours go to different ones, so that equal symbols do not wait for each
// other.
inline void count_symbols(const std::uint8_t* at, std::size_t n, SymbolCounts (&counts)[4]) {
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (std::size_t k = 0; k < 4; ++k) ++counts[k][at[i + k]];
  for (; i < n; ++i) ++counts[0][at[i]];
}

struct Symbols {
  const std::uint8_t* at = nullptr;
  std::uint32_t count = 0;  // at least 1
  // rANS: rows of `period` symbols (0: one row) have frequencies of their class. classes: 1, 2 or 4.
  std::uint32_t period = 0, classes = 1;
  const std::uint8_t* class_of_row = nullptr;
  const SymbolCounts* counts = nullptr;  // of each class, if they are known
};

enum class Entropy { none, huffman, rans };

void encode_huffman(const Symbols& in, Bytes& out);
// Each lane's first state holds 16 bits of `late`, in order; the decoder has them when it is done. Returns the bytes
// that went along.
std::size_t encode_rans(const Symbols& in, std::uint32_t lanes_log2, std::span<const std::uint8_t> late, Bytes& out);

// Into out[count], each at most `largest`. period: symbols of a row, as the encoder had it; 0: the symbols make no rows
// and have one class. The stream must end with `bytes`. Throw BadStream.
void decode_huffman(std::span<const std::uint8_t> bytes, std::uint32_t count, std::uint32_t largest, std::uint8_t* out);
void decode_rans(std::span<const std::uint8_t> bytes, std::uint32_t count, std::uint32_t period, std::uint32_t largest,
                 std::uint8_t* out, Bytes& late);

// Lengths of the codes of `count[0 .. span)`, at least two of them not 0: none above longest_code, Kraft's sum 1.
void huffman_lengths(const std::uint32_t* count, std::uint32_t span, std::uint8_t* length);

}  // namespace trireme::coding

// Symbol streams and vector-LZ: the numbers that coders share, and how frequencies become levels. (C++17: nvcc sees
// it.)
#pragma once
#include "compression/stages/format.h"

namespace trireme::coding {

constexpr std::uint32_t most_symbols = 256;

// Huffman: codes of at most 12 bits; sub-streams of 1024 symbols are decoded side by side.
constexpr std::uint32_t longest_code = 12, sub_stream = 1024;

// Vector-LZ: rows of a block, which refers to no other.
constexpr std::uint32_t lz_block = 2048;

// rANS (Duda 2013) with 32-bit states, 16 bits written at a time, probabilities in 1/4096. Up to 32 lanes of one group
// (a warp) take turns symbol by symbol and share a sequence of words.
constexpr std::uint32_t rans_bits = 12, rans_total = 1u << rans_bits, rans_low = 1u << 16, group_lanes = 32;
constexpr std::uint32_t most_lanes_log2 = 10;
// Lanes of a stream. The fast choice: as many steps one after another as a GPU does in 10 to 20 us; the smallest: about
// 2048 symbols each.
TRIREME_SHARED std::uint32_t lanes_log2(std::uint32_t symbols, std::uint32_t each) {
  const std::uint32_t log2 = bits_for((symbols + each - 1) / each);
  return log2 < most_lanes_log2 ? log2 : most_lanes_log2;
}
TRIREME_SHARED std::uint32_t fast_lanes_log2(std::uint32_t symbols) { return lanes_log2(symbols, 256); }
TRIREME_SHARED std::uint32_t few_lanes_log2(std::uint32_t symbols) { return lanes_log2(symbols, 2048); }
struct Lanes {
  std::uint32_t in_group, groups;
  std::uint64_t per_group;  // symbols, but for the last group
};
TRIREME_SHARED Lanes lanes_of(std::uint32_t log2, std::uint64_t symbols) {
  const std::uint32_t lanes = 1u << log2;
  Lanes l{lanes < group_lanes ? lanes : group_lanes, lanes < group_lanes ? 1 : lanes / group_lanes, 0};
  const std::uint64_t steps = (symbols + lanes - 1) / lanes;
  l.per_group = steps * l.in_group;
  return l;
}

// Frequencies are sent as 5-bit levels, about 0.4 octave apart; the most frequent symbol takes what is left.
constexpr std::uint32_t level_bits = 5, levels = 32;
TRIREME_SHARED std::uint32_t level_frequency(std::uint32_t level) {
  constexpr std::uint16_t of[levels] = {0,   1,   2,   3,    4,    5,    6,    8,    10,   13,  17,
                                        22,  29,  38,  50,   66,   87,   114,  150,  198,  260, 342,
                                        450, 592, 779, 1025, 1348, 1773, 2333, 3069, 3600, 4000};
  return of[level];
}

// Levels of a histogram, in two steps. First for each symbol by itself (any order): its share in 1/256 and the highest
// level that is not above it.
TRIREME_SHARED std::uint32_t share_256(std::uint32_t count, std::uint32_t total) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(count) << (rans_bits + 8)) / total);
}
TRIREME_SHARED std::uint8_t level_below(std::uint32_t share) {
  std::uint32_t l = 1;
  for (std::uint32_t half = levels / 2; half > 0; half /= 2)
    if (l + half < levels && 256 * level_frequency(l + half) <= share) l += half;
  return static_cast<std::uint8_t>(l);
}
// Levels whose frequencies add up to `sum`, all or more, are lowered: the largest first. Rare.
TRIREME_SHARED void lower_levels(std::uint32_t span, std::uint32_t top, std::uint32_t sum, std::uint8_t* level) {
  while (sum >= rans_total) {
    std::uint32_t most = top;
    for (std::uint32_t s = 0; s < span; ++s)
      if (level[s] > level[most]) most = s;
    sum -= level_frequency(level[most]) - level_frequency(level[most] - 1u);
    --level[most];
  }
}

// Then in the order of the symbols: this level or the next. Errors are carried along, so that what is left for the most
// frequent symbol, `top`, is about its share; there and where a symbol does not occur, the level becomes 0.
TRIREME_SHARED void settle_levels(const std::uint32_t* count, const std::uint32_t* share, std::uint32_t span,
                                  std::uint32_t top, std::uint8_t* level) {
  std::int32_t carried = 0;
  std::uint32_t sum = 0;
  for (std::uint32_t s = 0; s < span; ++s) {
    if (s == top || count[s] == 0) {
      level[s] = 0;
      continue;
    }
    std::uint32_t l = level[s];
    const std::int32_t wanted = carried + static_cast<std::int32_t>(share[s]);
    if (l + 1 < levels && 256 * static_cast<std::int32_t>(level_frequency(l + 1)) - wanted <
                              wanted - 256 * static_cast<std::int32_t>(level_frequency(l)))
      ++l;
    level[s] = static_cast<std::uint8_t>(l);
    carried = wanted - 256 * static_cast<std::int32_t>(level_frequency(l));
    sum += level_frequency(l);
  }
  lower_levels(span, top, sum, level);
}

// Bits (in 1/256) that symbols of these counts take, and 24 + 5 bits a symbol of their table.
TRIREME_SHARED std::uint64_t table_bits_256(std::uint32_t span) {
  return 256 * (24 + level_bits * static_cast<std::uint64_t>(span));
}
TRIREME_SHARED std::uint64_t symbol_bits_256(std::uint32_t count, std::uint32_t log2_total) {
  return count == 0 ? 0 : static_cast<std::uint64_t>(count) * (log2_total - log2_256(count));
}

}  // namespace trireme::coding

// What a block of the encoder shares, and its parts: bounded_rows.cuh (codes, unique rows, index; bounded_lanes.cuh: by
// 16 bytes), bounded_streams.cuh (tables, rANS, bytes), bounded_huffman.cuh, bounded_lz.cuh.
#pragma once
#include "compression/codecs/bounded_device.h"
#include "compression/codecs/bounded_fixed.cuh"
#include "compression/stages/block.cuh"

namespace trireme::coding {

// `lanes` of fp8 are for rows of up to 32 fours; the others take any.
__host__ __device__ inline Family family_of(const DeviceChunk& c) {
  if (c.only == vector_lz || c.only == huffman || c.only == dedup_huffman) return Family::paper;
  if (c.only == dedup_sparse || (!c.self && in_lanes(c.only, c.dim, c.stride, c.rows))) return Family::lanes;
  return Family::others;
}

struct Tables {
  DeviceChunk* chunks;
  PieceRange* pieces;
};

struct EncodeArguments {
  Tables tables;
  std::uint8_t* slots;
  std::uint64_t* sizes;
  bool relative, strict;
  std::uint32_t shared_bytes;
};

// As rans.cpp's, with the division by an invariant of Granlund and Montgomery (PLDI'94).
struct alignas(8) DeviceCoder {  // one load
  std::uint16_t frequency, first;
  std::uint32_t magic;
};
__device__ inline DeviceCoder make_coder(std::uint32_t frequency, std::uint32_t first) {
  DeviceCoder c{static_cast<std::uint16_t>(frequency), static_cast<std::uint16_t>(first), 0};
  if (frequency) {  // ((2^bits - frequency) << 32) / frequency + 1, in two steps of 16 bits
    const std::uint32_t above = (1u << bits_for(frequency)) - frequency, high = (above << 16) / frequency,
                        rest = (above << 16) - high * frequency;
    c.magic = (high << 16) + (rest << 16) / frequency + 1;
  }
  return c;
}
__device__ inline std::uint32_t divide(std::uint32_t x, const DeviceCoder& c) {
  const std::uint32_t shift = bits_for(c.frequency), high = __umulhi(c.magic, x);
  return shift ? (high + ((x - high) >> 1)) >> (shift - 1) : x;
}

// A symbol stream on its way. Classes: of rows of `period` symbols.
struct DeviceStream {
  const std::uint8_t* symbols;
  const std::uint32_t* row_of;  // rows lie apart: row r begins at symbols + row_of[r] * period
  const std::uint8_t* class_of_row;
  const std::uint8_t* late;
  std::uint32_t late_bytes;
  std::uint32_t count, period, classes, log2;
  std::uint32_t* counts;       // [classes][256]
  std::uint8_t* levels;        // [classes][256]
  DeviceCoder* coders;         // [classes][256]
  std::uint32_t* state;        // [lanes]
  std::uint32_t* group_words;  // [groups]
  std::uint16_t* words;        // [count]; a group's end at the end of its part
  std::uint32_t low[most_classes], span[most_classes], top[most_classes];
  std::uint32_t bytes;  // of all of it
};

constexpr std::uint32_t most_streams = 3;
struct DeviceBook;

struct EncodeShared {
  Bound bound;
  std::uint32_t nonfinite;
  std::int32_t code_min;
  std::uint32_t span, missed, unique, wide;
  std::uint32_t sums[block_warps];
  unsigned long long cost[16];
  std::uint32_t weight_rows[weight_classes], weight_repeats[weight_classes];
  std::uint32_t form, bits;  // of the index; plain bits in all
  DeviceStream stream[most_streams];
  DeviceBook* book[most_streams];  // Huffman
  std::uint32_t streams;
  ChunkHeader header;
};

// The rows of a chunk as they are coded.
struct DeviceRows {
  std::uint32_t* index;    // [n] number of the unique row
  std::uint32_t* unique;   // [n] where it is first
  std::uint32_t* repeats;  // [n] of a unique row
  std::uint32_t* place;    // [n] scratch
  std::uint32_t* rank;     // [n] unique rows before this one
  std::uint32_t* slots;    // the hash table, 2^k >= 2 n
  std::uint32_t slot_mask;
  std::uint8_t *weight, *repeat, *classes;  // [n]
  std::uint32_t* bits;                      // plain bits of the index
};

}  // namespace trireme::coding

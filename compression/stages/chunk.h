// One chunk to bytes and back: header, then what its encoder makes of the codes (docs/codecs.md).
#pragma once
#include "compression/stages/bytes.h"
#include "compression/stages/quantize.h"
#include "compression/stages/row_index.h"

#include <optional>

namespace trireme::coding {

struct Settings {
  std::vector<Encoder>
      try_all;            // the smallest is kept; empty: the fast choice. packed_codes and raw_values always count
  bool smallest = false;  // take time to choose parameters
  bool strict = true, checksum = false;
  int code_width = 0;
  std::uint32_t window = 32;
};

// Memory that chunks share.
struct EncodeScratch {
  Codes codes;
  Bytes narrow, unique, body, best;
  std::vector<std::uint16_t> wide;
  Dedup rows;
};

// Appends the code of the chunk, a multiple of 4 bytes. `range` is the chunk's own.
void encode_chunk(const Rows& rows, const Bound& bound, const Range& range, const Settings& settings,
                  EncodeScratch& scratch, Bytes& out);
// What a receiver would get.
void self_chunk(const Rows& rows, const Bound& bound, const Range& range, const Settings& settings,
                EncodeScratch& scratch, float* to, std::size_t stride);

// Throws BadStream where it is no header, or the bytes are more or fewer than it says.
ChunkHeader read_header(std::span<const std::uint8_t> code);
std::size_t payload_at(const ChunkHeader& header);
void decode_chunk(std::span<const std::uint8_t> code, bool checksum, std::size_t n, std::size_t dim, float* rows,
                  std::size_t stride);

inline bool is_fixed_rate(Encoder e) { return e >= fp16 && e <= int4; }
inline bool has_codes(Encoder e) {
  return e == packed_codes || (e >= vector_lz && e <= dedup_packed) || e == dedup_sparse;
}
inline bool has_index(Encoder e) {
  return e == dedup_huffman || e == dedup_rans || e == dedup_packed || e == dedup_values || e == dedup_sparse;
}
inline Entropy entropy_of(Encoder e) {  // of the index's streams
  return e == dedup_rans ? Entropy::rans : e == dedup_huffman ? Entropy::huffman : Entropy::none;
}
inline bool has_bytes(Encoder e) {  // codes of 8 bits alone
  return e == huffman || e == rans || e == dedup_huffman || e == dedup_rans || e == dedup_sparse;
}

}  // namespace trireme::coding

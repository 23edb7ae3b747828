// Error-bounded codec of embedding rows: each chunk is [rows x dim] f32 of one table for one destination.
// After Feng et al., "Dual-Level Adaptive Lossy Compression" (SC'24, arXiv 2407.04272): values are rounded to multiples
// of 2 eb without prediction, then whole rows and codes are coded without loss; docs/codecs.md has the stream.
//
// - Every finite value decodes with |x - x'| <= eb, evaluated in f64 (`strict`); what a receiver gets depends on the
//   values and eb alone, never on the coder. No chunk grows by more than the header (and its checksum).
// - eb = bound * R for a relative bound, R = max - min of the finite values of all chunks of one `scope` (a table's
//   whole batch, or each chunk alone); else eb = bound. bound 0: no loss. NaN and infinities: the chunk travels as it
//   is, bit by bit, or is refused.
// - A chunk has fewer than 2^30 values: UsageError.
// - Chunks lie one after another; every code is a multiple of 4 bytes long and begins at such an address.
// - decode checks all that it reads: bad bytes throw CommError and nothing is written outside the chunk's rows.
// - The same bytes on CPU and GPU. One thread at a time may call encode of one object; decode may run on several.
#pragma once
#include "comm/buffer.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct BoundedOptions {
  // auto (the fast one: dedup_rans), smallest (tries all, chunk by chunk), raw, packed, vector_lz, huffman, rans,
  // dedup_packed, dedup_sparse, dedup_huffman, dedup_rans; of fixed rate, without a bound: fp16, bf16, fp8, int8_row32,
  // int4.
  std::string codec = "auto";
  bool relative = true;           // bounds are fractions of R; else absolute
  bool strict = true;             // re-check each value, keep those that miss the bound as they are
  bool checksum = false;          // CRC32C of header and payload; a decoder that wants it refuses codes without
  bool refuse_nonfinite = false;  // encode throws Error (nonfinite) where it meets NaN or infinity
  int code_width = 0;             // 8, 16 bits a code at most; 0: what the span needs
  int window = 32;                // of vector_lz, rows: 1 to 255
};

// The largest f32 that is not above the bound.
float f32_bound(double bound);

class Bounded;

// One chunk to encode.
struct TableChunk {
  const float* rows = nullptr;
  std::size_t n = 0, dim = 1;
  std::size_t stride = 0;                  // floats from row to row; 0: dim
  float bound = 0;                         // >= 0
  const float* bound_on_device = nullptr;  // on a device, set: the bound lies there, so that a graph can change it
  std::uint32_t scope = 0;                 // chunks of equal scope share R, wherever they stand in the call
  // The chunk that stays here: what a receiver would get is written to `self` [n x dim] (stride self_stride, 0: dim;
  // may be `rows`), no code is made, and its size is 0. It counts in R.
  float* self = nullptr;
  std::size_t self_stride = 0;
  const Bounded* as = nullptr;  // set: coded by its codec, code width and window; all else is that of the call
};

// Chunks of a call that go to one receiver, in room of a fixed size, so that nobody has to say first how much there is:
// u64 "a part of this call had not enough room"; u64 the size of each of its chunks; their codes. Where the first is 1,
// as it then is in all parts, sizes are true but codes may lack.
struct CodePart {
  std::size_t chunks = 0;
  std::size_t bytes = 0;  // a multiple of 8, at least header_bytes(); 0: chunks that all stay here, nothing is written
  static constexpr std::size_t header_bytes(std::size_t chunks) { return 8 * (1 + chunks); }
};
constexpr std::size_t most_code_parts = 128;  // of a call

// One chunk to decode: exactly n rows are expected.
struct CodedChunk {
  const std::uint8_t* code = nullptr;
  std::size_t bytes = 0;
  float* rows = nullptr;
  std::size_t n = 0, dim = 1;
  std::size_t stride = 0;  // floats from row to row; 0: dim
  // of > 0: `code`, `bytes` are those of a CodePart of so many chunks, and this is its chunk `number`, from 0 on.
  std::size_t of = 0, number = 0;
};

// What a header says, for metrics. Throws CommError for bytes that are no header.
struct ChunkInfo {
  std::string_view encoder;
  float eb = 0;                     // absolute; 0: no loss
  std::size_t rows = 0, bytes = 0;  // bytes: header, payload and padding
  bool nonfinite = false;
  std::size_t outliers = 0;  // values kept as they are
};
ChunkInfo inspect(std::span<const std::uint8_t> code);

class Bounded {
 public:
  // Throws UsageError (beginning with `where`) for an unknown codec or a value out of range.
  explicit Bounded(BoundedOptions options, std::string_view where = {});
  const BoundedOptions& options() const { return options_; }
  static std::vector<std::string> names();

  std::size_t max_bytes(std::size_t rows, std::size_t dim) const;

  // out: u8, at least the sum of max_bytes of the chunks that travel. sizes: u64, one per chunk, on the host.
  // parts: of all chunks, in their order; then `out` holds them one after another instead of bare codes.
  //
  // On a device (out.place): all codecs but smallest, without checksum; NaN and infinities travel. `out` begins at a
  // multiple of 4 (of parts: of 8); sizes lie in device or pinned memory, valid in stream order; scratch: u8 on the
  // device, scratch_bytes() of them. Nothing waits and nothing is allocated; up to 400 chunks are three launches (four
  // where vector_lz, huffman or dedup_huffman are for some chunks alone), each further 400 one more; it can be captured
  // in a graph.
  void encode(std::span<const TableChunk> chunks, Buffer out, Buffer sizes, Buffer scratch = {},
              std::span<const CodePart> parts = {}) const;
  std::size_t scratch_bytes(std::span<const TableChunk> chunks) const;

  // On the host: throws CommError, naming the chunk by its number. On a device (place; codes that begin at no multiple
  // of 4 are bad): `status` (u32, device or pinned memory) becomes 0, or 1 + the number of the first bad chunk, whose
  // rows are then not to be used; scratch as above, decode_scratch_bytes().
  void decode(std::span<const CodedChunk> chunks, Place place = {}, std::uint32_t* status = nullptr,
              Buffer scratch = {}) const;
  std::size_t decode_scratch_bytes(std::span<const CodedChunk> chunks) const;

 private:
  BoundedOptions options_;
};

}  // namespace trireme

// How each row names its unique row: the forms of IndexForm. A form is some symbol streams and some plain bits; plain
// bits go where the caller wants them (rANS carries some in its lanes).
#pragma once
#include "compression/stages/quantize.h"
#include "compression/stages/symbols.h"

namespace trireme::coding {

struct IndexCode {
  IndexForm form = plain;
  Bytes streams, bits;
};
// `of.unique` is not empty. No entropy coder: plain or first_bit. smallest: every form is tried, else the one that
// ought to be the smallest.
IndexCode encode_index(const Dedup& of, Entropy entropy, bool smallest);

// The reverse, in two steps: the streams first (they say how many bits follow), then the bits.
class IndexDecoder {
 public:
  // n rows, `unique` of them different (1 to n). Takes its streams from `in`. Throws BadStream.
  IndexDecoder(IndexForm form, std::size_t n, std::uint32_t unique, Entropy entropy, Reader& in);
  std::size_t bytes_of_bits() const { return bytes_; }
  // index[n], each below `unique`.
  void decode(std::span<const std::uint8_t> bits, std::uint32_t* index) const;

 private:
  void decode_weighted(BitReader& bits, std::span<const std::uint8_t> first, std::uint32_t* index) const;

  IndexForm form_;
  std::size_t n_, bytes_ = 0;
  std::uint32_t unique_;
  Bytes weight_, repeat_;            // weighted: class of each unique row, of each repeated row
  std::vector<std::uint8_t> index_;  // symbols
};

}  // namespace trireme::coding

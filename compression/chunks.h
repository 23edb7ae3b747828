// Checks and walks that every codec shares.
#pragma once
#include "compression/compressor.h"

namespace trireme {

// f32 chunks in one place that the codec takes, room for all of them, one u64 size each where sizes belong. Throws
// Error (bug).
void check_encode(const Compressor& codec, std::span<const Chunk> chunks, const Buffer& out, const Buffer& sizes);
// One size per output, together no more than the input, none above max_bytes. Throws CommError.
void check_decode(const Compressor& codec, std::string_view name, const ConstBuffer& in,
                  std::span<const std::uint64_t> sizes, std::span<const Buffer> out);
[[noreturn]] void bad_code(std::string_view codec, std::string_view what);

// The values of a chunk with its error added. What their code then loses becomes the error of the next time.
class Compensated {
 public:
  explicit Compensated(const Chunk& chunk);
  const float* values() const { return sum_ ? sum_.get() : static_cast<const float*>(chunk_.in.data); }
  void keep_loss(const Compressor& codec, const std::uint8_t* code, std::size_t bytes) const;

 private:
  const Chunk& chunk_;
  std::unique_ptr<float[]> sum_;
};

// `one(values, count, bound, to)` returns the bytes it wrote.
template <class F>
void encode_each(const Compressor& codec, std::span<const Chunk> chunks, Buffer out, Buffer sizes, F one) {
  check_encode(codec, chunks, out, sizes);
  auto* to = static_cast<std::uint8_t*>(out.data);
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    const Compensated in(chunks[k]);
    const std::size_t bytes = one(in.values(), chunks[k].in.count, chunks[k].bound, to);
    in.keep_loss(codec, to, bytes);
    static_cast<std::uint64_t*>(sizes.data)[k] = bytes;
    to += bytes;
  }
}

// `one(from, bytes, values, count)`.
template <class F>
void decode_each(const Compressor& codec, std::string_view name, ConstBuffer in, std::span<const std::uint64_t> sizes,
                 std::span<const Buffer> out, F one) {
  check_decode(codec, name, in, sizes, out);
  const auto* from = static_cast<const std::uint8_t*>(in.data);
  for (std::size_t k = 0; k < out.size(); ++k) {
    one(from, static_cast<std::size_t>(sizes[k]), static_cast<float*>(out[k].data), out[k].count);
    from += sizes[k];
  }
}

}  // namespace trireme

// The seam of lossy compression: flat typed buffers to bytes and back, in host memory or (on_device) on a CUDA stream.
//
// Rules for every implementation (tests/contract runs each registered one):
// - encode writes the chunks one after another into `out` and each chunk's size into `sizes`; decode reverses it.
// - A chunk with bound > 0 given to a `bounded()` codec decodes with |x - y| <= bound in every element; a codec that
//   is not bounded ignores it.
// - Non-finite values never become finite ones: a chunk, or the block of it that holds one, decodes non-finite.
// - decode checks what it reads (it came from another rank): bad bytes throw CommError, nothing is written outside
//   `out`.
// - One thread at a time may call encode; decode may run on several threads.
// - On a device all buffers of a call but `sizes` lie there, codes of a summable codec aligned as its sum_type, others
//   anywhere; the work is enqueued on the stream of `out` and nothing waits for it; codes and errors have the bits that
//   the host would make, but for the payload of NaNs. A codec that is not fixed_size() writes its sizes there too, valid
//   in stream order; its codes begin and end at multiples of 4; values of bad ones become NaN, since nobody waits to
//   throw; calls of one object, decode included, follow each other in stream order.
#pragma once
#include "comm/archive.h"
#include "comm/buffer.h"
#include "comm/registry.h"

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Chunk {
  ConstBuffer in;    // f32
  double bound = 0;  // largest absolute error; 0: the codec's own precision
  // Error feedback (Karimireddy et al., ICML'19), one value per element: in + error is encoded, and error then holds
  // what the code lost of it, 0 where that is not finite.
  float* error = nullptr;
  const float* error_before = nullptr;  // set: it is added instead of `error`, and kept
};
inline const float* before(const Chunk& c) { return c.error_before ? c.error_before : c.error; }

class Compressor {
 public:
  virtual ~Compressor() = default;

  // Set when the encoded form of n values is n elements of this type whose sum is the code of the sum: it can be
  // all-reduced as it is.
  virtual std::optional<DType> sum_type() const { return {}; }
  bool summable() const { return sum_type().has_value(); }
  virtual bool bounded() const { return false; }
  // Is every code of `count` values max_bytes(count) long? Then sizes need not travel.
  virtual bool fixed_size() const { return false; }
  virtual std::size_t max_bytes(std::size_t count) const = 0;
  // Does it take device memory as well?
  virtual bool on_device() const { return false; }

  // out: u8, at least the sum of max_bytes; sizes: u64, one per chunk, in host memory (but see above).
  virtual void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) = 0;
  virtual void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const = 0;

  // out: f32, the values of all codes (one chunk of out.count values each) summed in their order. At least one code.
  virtual void decode_sum(std::span<const ConstBuffer> codes, Buffer out) const;

  virtual void state(Archive&) {}  // what changes the next encode
};

using Compressors = Factories<Compressor>;

}  // namespace trireme

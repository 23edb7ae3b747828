// fp8 (e4m3; 132 bytes for 128 values) and int4 (68 bytes) of flat values. The largest error is 1/28 and 1/14 of a
// block's largest magnitude: meant to be used with error feedback.
#include "compression/codecs/scaled.h"

#include "comm/clones.h"
#include "compression/fixed_size_codec.h"

#include <algorithm>

namespace trireme {
namespace {

using namespace coding;

template <class Format>
std::size_t bytes_of(std::size_t count) {
  return sizeof(float) * scaled_blocks(count) + Format::bytes(count);
}

// Codes as bytes to memory and back. `to` and `from`: of the block's first value, whose number is even.
void store(Fp8Block, const std::uint8_t* codes, std::size_t n, std::uint8_t* to) { std::memcpy(to, codes, n); }
void store(Int4Block, const std::uint8_t* codes, std::size_t n, std::uint8_t* to) {
  for (std::size_t i = 0; i < n / 2; ++i) to[i] = static_cast<std::uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  if (n % 2) to[n / 2] = codes[n - 1];
}
void load(Fp8Block, const std::uint8_t* from, std::size_t n, std::uint8_t* codes) { std::memcpy(codes, from, n); }
void load(Int4Block, const std::uint8_t* from, std::size_t n, std::uint8_t* codes) {
  for (std::size_t i = 0; i < n / 2; ++i) codes[2 * i] = from[i] & 15, codes[2 * i + 1] = from[i] >> 4;
  if (n % 2) codes[n - 1] = from[n / 2] & 15;
}

// Inlined, or they would not be cloned.
template <class Format>
[[gnu::always_inline]] inline void encode_blocks(const EncodeJob& job) {
  const auto [in, before, error, count, code] = job;
  std::uint8_t* const codes_at = code + sizeof(float) * scaled_blocks(count);
  float sum[scaled_block];
  std::uint8_t codes[scaled_block];
  for (std::size_t first = 0; first < count; first += scaled_block) {
    const std::size_t n = std::min(scaled_block, count - first);
    const float* v = in + first;
    if (error) {
      for (std::size_t i = 0; i < n; ++i) sum[i] = v[i] + before[first + i];
      v = sum;
    }
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, float_bits(v[i]) & 0x7fffffffu);
    const float scale = scaled_scale<Format>(largest), inverse = scale > 0 ? 1 / scale : 0;
    std::memcpy(code + first / scaled_block * sizeof scale, &scale, sizeof scale);
    if (inverse == 0)
      std::fill_n(codes, n, static_cast<std::uint8_t>(Format::code(0)));
    else
      for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(Format::code(v[i] * inverse));
    store(Format(), codes, n, codes_at + Format::bytes(first));
    if (!error) continue;
    for (std::size_t i = 0; i < n; ++i)  // what is not finite must not poison the next step
      error[first + i] = is_finite(scale) ? v[i] - scaled_value<Format>(codes[i], scale) : 0;
  }
}

// The sum of several codes, block by block.
template <class Format>
[[gnu::always_inline]] inline void decode_blocks(const DecodeJob& job) {
  std::uint8_t codes[scaled_block];
  for (std::size_t first = 0; first < job.count; first += scaled_block) {
    const std::size_t n = std::min(scaled_block, job.count - first);
    float* out = job.out + first;
    for (std::size_t k = 0; k < job.codes; ++k) {
      float scale;
      std::memcpy(&scale, job.code[k] + first / scaled_block * sizeof scale, sizeof scale);
      load(Format(), job.code[k] + sizeof scale * scaled_blocks(job.count) + Format::bytes(first), n, codes);
      if (k == 0 && !job.add) {
        for (std::size_t i = 0; i < n; ++i) out[i] = scaled_value<Format>(codes[i], scale);
      } else {
        for (std::size_t i = 0; i < n; ++i) out[i] += scaled_value<Format>(codes[i], scale);
      }
    }
  }
}

TRIREME_CLONES void encode_fp8_blocks(const EncodeJob& job) { encode_blocks<Fp8Block>(job); }
TRIREME_CLONES void encode_int4_blocks(const EncodeJob& job) { encode_blocks<Int4Block>(job); }
TRIREME_CLONES void decode_fp8_blocks(const DecodeJob& job) { decode_blocks<Fp8Block>(job); }
TRIREME_CLONES void decode_int4_blocks(const DecodeJob& job) { decode_blocks<Int4Block>(job); }

const Compressors::Entry fp8_entry("fp8", [] {
  return make_compressor({"fp8", bytes_of<Fp8Block>, {}, encode_fp8, decode_fp8});
});
const Compressors::Entry int4_entry("int4", [] {
  return make_compressor({"int4", bytes_of<Int4Block>, {}, encode_int4, decode_int4});
});

}  // namespace

constinit Kernel<EncodeJob> encode_fp8("encode_fp8", encode_fp8_blocks);
constinit Kernel<DecodeJob> decode_fp8("decode_fp8", decode_fp8_blocks);
constinit Kernel<EncodeJob> encode_int4("encode_int4", encode_int4_blocks);
constinit Kernel<DecodeJob> decode_int4("decode_int4", decode_int4_blocks);

}  // namespace trireme

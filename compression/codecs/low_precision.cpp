// bf16 and fp16: half the bytes, summable. fp16 saturates to infinity above 65504; bf16 keeps f32's range.
#include "comm/reduce.h"
#include "compression/codecs/kernels.h"
#include "compression/fixed_size_codec.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::size_t block = 256;  // values at a time, in the first cache

std::size_t bytes_of(std::size_t count) { return 2 * count; }

template <DType type>
void encode(const EncodeJob& job) {
  if (!job.error) return narrow(type, job.in, job.code, job.count);
  float sum[block], decoded[block];
  for (std::size_t first = 0; first < job.count; first += block) {
    const std::size_t n = std::min(block, job.count - first);
    std::uint8_t* code = job.code + bytes_of(first);
    for (std::size_t i = 0; i < n; ++i) sum[i] = job.in[first + i] + job.before[first + i];
    narrow(type, sum, code, n);
    widen(type, code, decoded, n);
    for (std::size_t i = 0; i < n; ++i) {
      const float lost = sum[i] - decoded[i];
      job.error[first + i] = lost - lost == 0 ? lost : 0;  // a value that is not finite must not poison the next step
    }
  }
}

template <DType type>
void decode(const DecodeJob& job) {
  if (job.codes == 1 && !job.add) return widen(type, job.code[0], job.out, job.count);
  float next[block];
  for (std::size_t first = 0; first < job.count; first += block) {
    const std::size_t n = std::min(block, job.count - first);
    float* out = job.out + first;
    for (std::size_t k = 0; k < job.codes; ++k) {
      const bool alone = k == 0 && !job.add;
      widen(type, job.code[k] + bytes_of(first), alone ? out : next, n);
      if (alone) continue;
      for (std::size_t i = 0; i < n; ++i) out[i] += next[i];
    }
  }
}

const Compressors::Entry bf16("bf16", [] {
  return make_compressor({"bf16", bytes_of, DType::bf16, encode_bf16, decode_bf16});
});
const Compressors::Entry fp16("fp16", [] {
  return make_compressor({"fp16", bytes_of, DType::f16, encode_fp16, decode_fp16});
});

}  // namespace

constinit Kernel<EncodeJob> encode_bf16("encode_bf16", encode<DType::bf16>);
constinit Kernel<EncodeJob> encode_fp16("encode_fp16", encode<DType::f16>);
constinit Kernel<DecodeJob> decode_bf16("decode_bf16", decode<DType::bf16>);
constinit Kernel<DecodeJob> decode_fp16("decode_fp16", decode<DType::f16>);

}  // namespace trireme

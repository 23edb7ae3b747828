#include "compression/compressor.h"

namespace trireme {

void Compressor::decode_sum(std::span<const ConstBuffer> codes, Buffer out) const {
  const auto next = std::make_unique_for_overwrite<float[]>(out.count);
  auto* sum = static_cast<float*>(out.data);
  for (std::size_t k = 0; k < codes.size(); ++k) {
    const std::uint64_t size = codes[k].count;
    const Buffer values{k == 0 ? sum : next.get(), out.count, DType::f32};
    decode(codes[k], {&size, 1}, {&values, 1});
    if (k == 0) continue;
    for (std::size_t i = 0; i < out.count; ++i) sum[i] += next[i];
  }
}

}  // namespace trireme

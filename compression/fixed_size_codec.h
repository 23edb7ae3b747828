// A Compressor made of the two kernels of fixed_size.h.
#pragma once
#include "compression/compressor.h"
#include "compression/fixed_size.h"

namespace trireme {

struct FixedSizeCodec {
  std::string_view name;
  std::size_t (*bytes)(std::size_t count);
  std::optional<DType> sum_type;
  const Kernel<EncodeJob>& encode;
  const Kernel<DecodeJob>& decode;
};
std::unique_ptr<Compressor> make_compressor(const FixedSizeCodec& codec);

}  // namespace trireme

// The values of largest magnitude, on the host and on CUDA, the same to the bit. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstddef>
#include <cstdint>

namespace trireme::kernels {

// rest = before + in. The `keep` values of largest magnitude of it, equal ones by index, NaN before infinity before
// numbers, go to `index` and `value` in the order of their indices. They become zero in `rest`; all of it does with
// `forget`, and where one is not finite, which must not come again.
struct TopKJob {
  const float* in = nullptr;
  const float* before = nullptr;
  float* rest = nullptr;
  std::int64_t count = 0, keep = 0;  // 1 <= keep <= count < 2^31
  bool forget = false;
  std::int32_t* index = nullptr;
  float* value = nullptr;
  void* scratch = nullptr;  // top_k_scratch(count) bytes, on a device alone
};
extern Kernel<TopKJob> top_k;
std::size_t top_k_scratch(std::int64_t count);

// out[index[k]] += value[k]. No index comes twice; one that lies outside makes out[0] NaN: it came over the wire.
struct AddAtJob {
  const std::int32_t* index = nullptr;
  const float* value = nullptr;
  std::int64_t keep = 0;
  float* out = nullptr;
  std::int64_t count = 0;
};
extern Kernel<AddAtJob> add_at;

// The bits of magnitudes are in the order of the magnitudes. The k-th largest is found by its digits, from the highest.
struct TopKDigit {
  int shift, bits;
};
constexpr TopKDigit top_k_digits[] = {{20, 11}, {10, 10}, {0, 10}};
constexpr std::uint32_t top_k_not_finite = 0x7f800000u;
// On a device: values that a block looks at in order, and what it counts.
constexpr std::int64_t top_k_tile = 4096;

}  // namespace trireme::kernels

// Which samples of a batch ask a table for the same row. On the host and on CUDA, with equal results. (C++17: nvcc sees
// it.)
#pragma once
#include "framework/kernels/embedding.h"

namespace trireme::kernels {

// For each bag of `bags` (its BagTable::column and width count alone): first, as a row of [count * b], where the first
// sample stands that asks for the same row of the same table in the same block; times: how many do, where a group
// begins, else 0. A table of bags (width > 1) has groups of one. A bag without an id: first -1, times 0.
struct EqualIdsJob {
  Bags bags;
  std::int32_t* first;  // [blocks, count, b]
  float* times;         // the same
  void* scratch;        // equal_ids_scratch() bytes of the place, aligned to 16
};

// At least twice as many slots as bags, a power of two: a search among them ends soon.
inline std::int64_t equal_ids_slots(std::int64_t bags) {
  std::int64_t slots = 64;
  while (slots < 2 * bags) slots *= 2;
  return slots;
}
inline std::int64_t equal_ids_scratch(std::int64_t bags) { return equal_ids_slots(bags) * 16; }

TRIREME_BOTH inline std::uint32_t mixed(std::uint64_t key) {
  key *= 0x9e3779b97f4a7c15ull;
  return static_cast<std::uint32_t>(key >> 32);
}

TRIREME_BOTH inline bool asks(const std::int32_t* ids, std::int64_t width) {
  for (std::int64_t w = 0; w < width; ++w)
    if (ids[w] >= 0) return true;
  return false;
}

extern Kernel<EqualIdsJob> equal_ids;

}  // namespace trireme::kernels

// Dropout whose mask is a function of (job, step, module, row, column) by Philox4x32-10 (Salmon et al., SC'11): it is
// computed again where it is needed, and a job's mask does not depend on who shares the batch. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"

#include <cstdint>

namespace trireme::kernels {

// Of one job in one step.
struct DropoutKey {
  std::uint32_t key[2] = {};
  std::uint32_t step = 0;
  std::uint32_t row = 0;        // of the job's step, of the group's first row
  std::uint32_t threshold = 0;  // a value is dropped if its number lies below: p * 2^32. 0: dropout is off
  float scale = 1;              // 1 / (1 - p)
};

struct DropoutWords {
  std::uint32_t word[4];
};

// The numbers of columns [4 quad, 4 quad + 4).
inline TRIREME_BOTH DropoutWords dropout_words(const DropoutKey& k, std::uint32_t module, std::uint32_t row,
                                               std::uint32_t quad) {
  std::uint32_t c[4] = {k.row + row, quad, module, k.step}, key[2] = {k.key[0], k.key[1]};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c[0];
    const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c[2];
    const std::uint32_t next0 = static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key[0];
    const std::uint32_t next2 = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key[1];
    c[0] = next0, c[1] = static_cast<std::uint32_t>(p1), c[2] = next2, c[3] = static_cast<std::uint32_t>(p0);
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// What a value is multiplied by.
inline TRIREME_BOTH float dropout_factor(const DropoutKey& k, std::uint32_t number) {
  return number < k.threshold ? 0.0f : k.scale;
}

}  // namespace trireme::kernels

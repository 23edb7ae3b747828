// Internal to normal_rows: four values of a row, for the host and for CUDA.
#pragma once
#include "framework/kernels/dropout.h"
#include "framework/kernels/normal_rows.h"

#include <cmath>

namespace trireme::kernels {

struct NormalFour {
  float value[4];
};

// Columns [4 quad, 4 quad + 4).
inline TRIREME_BOTH NormalFour normal_four(const NormalRowsJob& job, std::int64_t row, std::uint32_t quad) {
  DropoutKey key;
  key.key[0] = job.key[0], key.key[1] = job.key[1], key.step = job.draw;
  const DropoutWords w = dropout_words(key, 0x6e6f726du, static_cast<std::uint32_t>(job.ids[row]), quad);
  NormalFour out;
  for (int pair = 0; pair < 2; ++pair) {
    // (0, 1], so that its logarithm is finite.
    const float u = (static_cast<float>(w.word[2 * pair] >> 8) + 1.0f) * 5.9604645e-8f;
    const float angle = static_cast<float>(w.word[2 * pair + 1] >> 8) * (5.9604645e-8f * 6.2831853f);
    const float r = sqrtf(-2.0f * logf(u));
    out.value[2 * pair] = r * cosf(angle), out.value[2 * pair + 1] = r * sinf(angle);
  }
  return out;
}

}  // namespace trireme::kernels

#include "framework/kernels/top_k.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

namespace trireme::kernels {
namespace {

// All NaNs are alike: which of them a sum gives is the processor's choice.
std::uint32_t key_of(float v) { return std::min(std::bit_cast<std::uint32_t>(v) & 0x7fffffffu, top_k_not_finite + 1); }

// The smallest key that is kept, and how many values of just that key are.
struct Threshold {
  std::uint32_t key = 0;
  std::int64_t equal = 0;
};

Threshold threshold(const float* v, std::int64_t count, std::int64_t keep) {
  Threshold t{0, keep};
  std::uint32_t known = 0;  // the bits of `key` that are found
  for (const auto [shift, bits] : top_k_digits) {
    std::array<std::int64_t, 2048> histogram{};
    const std::uint32_t mask = (1u << bits) - 1;
    for (std::int64_t i = 0; i < count; ++i)
      if (const std::uint32_t key = key_of(v[i]); (key & known) == t.key) ++histogram[(key >> shift) & mask];
    std::uint32_t digit = mask;
    for (; histogram[digit] < t.equal; --digit) t.equal -= histogram[digit];
    t.key |= digit << shift;
    known |= mask << shift;
  }
  return t;
}

void select(const TopKJob& job) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < job.count; ++i) {
    job.rest[i] = job.before[i] + job.in[i];
    largest = std::max(largest, key_of(job.rest[i]));
  }
  const Threshold t = threshold(job.rest, job.count, job.keep);
  std::int64_t found = 0, equal = 0;
  for (std::int64_t i = 0; i < job.count; ++i) {
    const std::uint32_t key = key_of(job.rest[i]);
    if (key < t.key || (key == t.key && equal++ >= t.equal)) continue;
    job.index[found] = std::int32_t(i);
    job.value[found++] = std::exchange(job.rest[i], 0.0f);
  }
  if (job.forget || largest >= top_k_not_finite) std::fill_n(job.rest, job.count, 0.0f);
}

void add(const AddAtJob& job) {
  for (std::int64_t k = 0; k < job.keep; ++k) {
    const std::int64_t i = job.index[k];
    if (i >= 0 && i < job.count)
      job.out[i] += job.value[k];
    else
      job.out[0] = std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace

// Histograms, a few words; of each tile three counts and room for its candidates.
std::size_t top_k_scratch(std::int64_t count) {
  return (3 * 2048 + 8) * 4 + std::size_t((count + top_k_tile - 1) / top_k_tile) * (12 + 2 * top_k_tile);
}

constinit Kernel<TopKJob> top_k("top_k", select);
constinit Kernel<AddAtJob> add_at("add_at", add);

}  // namespace trireme::kernels

// Counter-based random numbers (Philox4x32-10, Salmon et al., SC'11). A stream is keyed by (seed, purpose, a, b),
// never by rank: the same sample in the same step draws the same numbers on any number of ranks.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace trireme {

class Rng {
 public:
  // purpose: a fixed word per use ("augment", "init", "order"); a, b: step, sample id, epoch, ...
  Rng(std::uint64_t seed, std::string_view purpose, std::uint64_t a = 0, std::uint64_t b = 0);
  std::uint32_t u32();
  std::uint64_t u64() { return (std::uint64_t(u32()) << 32) | u32(); }
  double uniform();                      // [0, 1), 53 bits
  double normal();                       // mean 0, variance 1 (Box-Muller)
  std::uint64_t below(std::uint64_t n);  // [0, n), unbiased; n > 0

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
  double spare_ = 0;
  bool has_spare_ = false;
};

// Fisher-Yates order of 0..n-1.
std::vector<std::int64_t> permutation(std::int64_t n, Rng rng);

}  // namespace trireme

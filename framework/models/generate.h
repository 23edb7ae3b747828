// Greedy decoding of many samples at once, each perhaps with an adapter of its own.
#pragma once
#include "framework/models/causal_lm.h"

#include <functional>
#include <span>
#include <vector>

namespace trireme {

struct GreedyOptions {
  std::int64_t most = 256;           // new tokens of a sample
  std::vector<std::int64_t> ends{};  // a sample ends with one of these; it is not part of the result
  // Before each pass, with the tokens that it has of each sample in their order (0: that one has ended): for
  // AdapterStore::begin.
  std::function<void(std::span<const std::int64_t> lengths)> before_pass{};
};

// The likeliest continuation token by token, of the first id among equals. prompts: at least one token each. A sample
// also ends at the model's max_length.
std::vector<std::vector<std::int64_t>> greedy(const CausalLm& model,
                                              const std::vector<std::vector<std::int64_t>>& prompts,
                                              const GreedyOptions& options);

}  // namespace trireme

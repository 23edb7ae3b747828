// Attention of ranks that hold a part of the image tokens each, and all of the text.
#pragma once
#include "framework/nn/joint_attention.h"

#include <utility>

namespace trireme {

// One per rank, used by one forward at a time; all ranks call the same members in the same order.
class SequenceParallel {
 public:
  virtual ~SequenceParallel() = default;
  // This rank's image tokens [first, second) of `tokens`; parts may differ in size. The ranks' parts follow each other.
  virtual std::pair<std::int64_t, std::int64_t> slice(std::int64_t tokens) const = 0;
  // [B, H, n, d]; image: this rank's part; text: equal on all ranks, undefined in self-attention. Same shapes as q.
  // `tokens`: image tokens of all ranks.
  virtual nn::TokenPair attention(const nn::TokenPair& q, const nn::TokenPair& k, const nn::TokenPair& v,
                                  const nn::AttentionScores& scores, std::int64_t tokens) = 0;
  // [B, n, ...] of each rank -> [B, tokens, ...] on every rank.
  virtual at::Tensor gather(const at::Tensor& image, std::int64_t tokens) = 0;
};

}  // namespace trireme

// Attention of ranks that hold a part of the image tokens each, and all of the text. For sampling: no gradient.
#pragma once
#include "comm/communicator.h"
#include "framework/nn/joint_attention.h"

#include <memory>
#include <string_view>
#include <utility>

namespace trireme {

// One per rank, used by one forward at a time; all ranks call the same members in the same order.
class SequenceParallel {
 public:
  virtual ~SequenceParallel() = default;
  // This rank's image tokens [first, second) of `tokens`; parts may differ in size. The ranks' parts follow each other.
  virtual std::pair<std::int64_t, std::int64_t> slice(std::int64_t tokens) const = 0;
  // [B, H, n, d]; image: this rank's part; text: equal on all ranks, undefined in self-attention. -> [B, H, M + n, d]:
  // all text, then this rank's part.
  // `tokens`: image tokens of all ranks.
  virtual at::Tensor attention(const nn::TokenPair& q, const nn::TokenPair& k, const nn::TokenPair& v,
                               const nn::AttentionScores& scores, std::int64_t tokens) = 0;
  // [B, n, ...] of each rank -> [B, tokens, ...] on every rank.
  virtual at::Tensor gather(const at::Tensor& image, std::int64_t tokens) = 0;
  virtual Communicator& ranks() const = 0;
};

// Contiguous parts of `count` for `ranks`, the first ones longer by one where it does not divide.
std::pair<std::int64_t, std::int64_t> even_part(std::int64_t count, int rank, int ranks);

// "ring" (Liu et al. 2023, arXiv 2310.01889): keys and values of the image go round, P - 1 hops a layer while the part
// at hand is computed; a rank sends 2 B D (N - its successor's part) elements. Attention over the text is one part that
// stays, and the only one that is biased. AttentionScores::mask is not needed and not looked at.
// "ulysses" (Jacobs et al. 2023, arXiv 2309.14509): two exchanges a layer turn a part of the tokens of all heads into
// all tokens of a part of the heads, and back. Heads go in up to four waves of at least wave_bytes that a rank holds of
// q, k and v, each with two exchanges of its own: beside attention, which keeps the multiprocessors (comm/beside.h).
// UsageError where there are more ranks than heads.
// Both: UsageError where there are fewer tokens than ranks. `ranks` must live as long, and carries what the model
// computes in (device memory, types). Throws UsageError for another kind.
std::unique_ptr<SequenceParallel> sequence_parallel(std::string_view kind, Communicator& ranks,
                                                    std::int64_t wave_bytes = 32 << 20);

}  // namespace trireme

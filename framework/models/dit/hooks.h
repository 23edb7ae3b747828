// What a method may change in a denoiser's forward. None set: bit-identical to the plain model.
#pragma once
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

namespace trireme {

// f32 [tokens, head_dim / 2] or [B, tokens, head_dim / 2]: one entry a pair of adjacent channels. Undefined: no
// rotation.
struct RopeTable {
  at::Tensor cos, sin;
};
struct RopeTables {  // of the tokens in their order
  RopeTable text, image;
};

class SequenceParallel;  // framework/models/dit/sequence_parallel.h
class TokenSet;          // framework/models/dit/token_set.h
class BlockCache;        // framework/models/dit/block_cache.h

// Everything pointed at must live until the forward returns.
struct DitHooks {
  enum class Bias : std::uint8_t { lse_merge, bias };  // two attentions merged by their log-sum-exp, or a mask (oracle)
  double text_bias = 0;  // added to the logits of text keys. UsageError: a model without joint attention
  Bias form = Bias::lse_merge;
  double logit_scale = 1;               // of joint or self-attention, times 1/sqrt(head_dim)
  std::optional<RopeTables> rope = {};  // in place of the model's own, Denoiser::rope
  TokenSet* tokens = nullptr;
  SequenceParallel* parallel = nullptr;
  BlockCache* blocks = nullptr;
};

}  // namespace trireme

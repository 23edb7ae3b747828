// Attention of image and text tokens over both, with a bias on the text's keys; parts that return their log-sum-exp, so
// that attention over pieces of the keys can be put together (text anchoring, rings). Differentiable but for the
// latter.
#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

struct TokenPair {
  at::Tensor text, image;  // text undefined: there is none
};

struct AttentionScores {
  double scale = 0;      // of q k^T: 1/sqrt(head_dim), unless a method has another
  double text_bias = 0;  // added to the logits of text keys
  bool mask = false;     // bias as a mask [1, 1, 1, keys] (oracle) instead of two attentions merged
};

// q, k, v [B, H, n, d] of one type; text keys are rows [text_begin, text_end) of k and v. -> [B, H, n of q, d].
at::Tensor joint_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t text_begin,
                           std::int64_t text_end, const AttentionScores& scores);

// out [B, H, n, d] of q's type, lse f32 [B, H, n]: the logarithm of the sum over keys of exp(scale q k).
struct AttentionPart {
  at::Tensor out, lse;
};
// Never holds all scores: a fused kernel, in f32 on a GPU attention_by_queries. No gradient.
AttentionPart attention_part(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale);
// In f64: products in f32 on a GPU are off by 1e-5 of the result's deviation (torch's fused kernel and cuBLAS's alike),
// more than results of ranks and of hosts may differ, and Hopper multiplies f64 as fast. Takes 64 MiB for the scores of
// some queries at a time (more where one query's are more), and k and v in f64.
AttentionPart attention_by_queries(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale);
// Softmax over the keys of both; `bias` is added to a's logits. out is of a's type, sums are f32. It goes into `into`
// [B, H, n, d], where that is given.
AttentionPart merge_parts(const AttentionPart& a, const AttentionPart& b, double bias = 0, const at::Tensor& into = {});

}  // namespace trireme::nn

// Cross-entropy of the next token over a large vocabulary, a few tokens at a time: the logits of a whole batch are
// never in memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme {

// hidden [T, h], head [vocab, h], of one floating type; labels i64 [T], -100 where nothing counts. -> f32 (f64 of f64)
// [T]: -log softmax(hidden head^T)[label], 0 where nothing counts. A frozen head costs two products in all, since what
// backward needs is computed beside the loss; a trained one is computed again in backward.
at::Tensor token_losses(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels,
                        std::int64_t chunk_tokens = 1024);

constexpr std::int64_t ignored_label = -100;

}  // namespace trireme

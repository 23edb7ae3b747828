#include "framework/losses/token_loss.h"

#include "framework/base/tensor.h"
#include "framework/kernels/lm_pointwise.h"

#include <algorithm>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace trireme {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Chunk {
  at::Tensor losses, slopes;  // [t], and of the logits [t, vocab], for losses that weigh 1
};

Chunk chunk_of(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels, bool slopes) {
  const auto type = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logs = at::log_softmax(at::linear(hidden, head), 1, type);
  const at::Tensor counts = labels.ne(ignored_label);
  const at::Tensor picked = labels.clamp_min(0).unsqueeze(1);
  Chunk c;
  c.losses = at::where(counts, -logs.gather(1, picked).squeeze(1), 0);
  if (!slopes) return c;
  c.slopes = logs.exp_();
  c.slopes.scatter_add_(1, picked, at::full_like(picked, -1, c.slopes.options()));
  c.slopes.mul_(counts.unsqueeze(1));
  return c;
}

// Both at once, by one kernel that turns logits into their gradient where they lie.
template <class T>
Chunk fused(const at::Tensor& logits, const at::Tensor& labels) {
  Chunk c{at::empty({logits.size(0)}, logits.options().dtype(at::kFloat)), logits};
  kernels::token_loss(
      kernels::TokenLossJob<T>{static_cast<T*>(logits.mutable_data_ptr()), labels.const_data_ptr<std::int64_t>(),
                               c.losses.mutable_data_ptr<float>(), logits.size(0), logits.size(1)},
      buffer_of(logits).place);
  return c;
}

Chunk with_slopes(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels) {
  if (hidden.scalar_type() == at::kFloat) return fused<float>(at::linear(hidden, head), labels);
  if (hidden.scalar_type() == at::kBFloat16) return fused<kernels::BrainFloat>(at::linear(hidden, head), labels);
  return chunk_of(hidden, head, labels, true);
}

struct TokenLosses : torch::autograd::Function<TokenLosses> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& labels, std::int64_t chunk, bool hidden_moves, bool head_moves) {
    std::vector<at::Tensor> losses, gradients;
    const bool beside = hidden_moves && !head_moves;
    for (std::int64_t first = 0; first < hidden.size(0); first += chunk) {
      const std::int64_t n = std::min(chunk, hidden.size(0) - first);
      const at::Tensor x = hidden.narrow(0, first, n), wanted = labels.narrow(0, first, n).contiguous();
      const Chunk c = beside ? with_slopes(x, head, wanted) : chunk_of(x, head, wanted, false);
      losses.push_back(c.losses);
      if (beside) gradients.push_back(c.slopes.to(head.scalar_type()).mm(head));
    }
    ctx->saved_data["chunk"] = chunk;
    ctx->saved_data["beside"] = beside;
    if (beside)
      ctx->save_for_backward({at::cat(gradients)});
    else
      ctx->save_for_backward({hidden, head, labels});
    return losses.empty() ? at::zeros({0}, hidden.options().dtype(at::kFloat)) : at::cat(losses);
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor weight = dy[0].unsqueeze(1);
    if (ctx->saved_data["beside"].toBool()) {
      // Rounded once: a weight of bf16 would scale all of a job's gradient wrongly.
      at::Tensor gradient = at::empty_like(saved[0]);
      at::mul_out(gradient, saved[0], weight);
      return {gradient, {}, {}, {}, {}, {}};
    }
    const at::Tensor &hidden = saved[0], &head = saved[1], &labels = saved[2];
    const std::int64_t chunk = ctx->saved_data["chunk"].toInt();
    std::vector<at::Tensor> parts;
    at::Tensor head_gradient = at::zeros_like(head);
    for (std::int64_t first = 0; first < hidden.size(0); first += chunk) {
      const std::int64_t n = std::min(chunk, hidden.size(0) - first);
      const at::Tensor x = hidden.narrow(0, first, n);
      const at::Tensor slopes =
          (chunk_of(x, head, labels.narrow(0, first, n), true).slopes * weight.narrow(0, first, n))
              .to(head.scalar_type());
      parts.push_back(slopes.mm(head));
      head_gradient.addmm_(slopes.t(), x);
    }
    return {at::cat(parts), head_gradient, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor token_losses(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels,
                        std::int64_t chunk_tokens) {
  const bool graph = at::GradMode::is_enabled();
  return TokenLosses::apply(hidden, head, labels, chunk_tokens, graph && hidden.requires_grad(),
                            graph && head.requires_grad());
}

}  // namespace trireme

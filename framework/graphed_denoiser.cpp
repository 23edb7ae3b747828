#include "framework/graphed_denoiser.h"

#include "framework/models/dit/token_set.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr std::size_t most_kinds = 16;

// Every tensor a forward reads, in one order; undefined ones have no place in a graph but in the key.
std::vector<at::Tensor> inputs_of(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks& h) {
  std::vector<at::Tensor> all{x, t, c.text, c.pooled, c.guidance, c.image, c.image_tokens};
  const RopeTables rope = h.rope.value_or(RopeTables{});
  for (const auto& table : {rope.text, rope.image}) {
    all.push_back(table.cos);
    all.push_back(table.sin);
  }
  return all;
}

std::vector<double> key_of(const std::vector<at::Tensor>& inputs, const DitHooks& h) {
  std::vector<double> key{h.text_bias, double(h.form), h.logit_scale, double(h.rope.has_value())};
  if (h.tokens) {
    key.push_back(double(h.tokens->memory()));
    key.push_back(h.tokens->is_dense() ? 0 : double(h.tokens->active().size(0)));
    key.push_back(h.tokens->is_dense() ? 0 : double(h.tokens->active().size(1)));
  }
  for (const auto& t : inputs) {
    key.push_back(-1);
    if (!t.defined()) continue;
    key.push_back(double(t.scalar_type()));
    for (const auto n : t.sizes()) key.push_back(double(n));
  }
  return key;
}

}  // namespace

at::Tensor GraphedDenoiser::forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c,
                                    const DitHooks& hooks) {
  if (!x.is_cuda() || at::GradMode::is_enabled() || hooks.blocks || hooks.parallel)
    return model_->forward(x, t, c, hooks);
  const auto inputs = inputs_of(x, t, c, hooks);
  Kind& kind = kinds_[key_of(inputs, hooks)];
  kind.last_use = ++clock_;
  if (!kind.graph) {
    // The first forward fills caches and lets libraries choose their kernels.
    if (++kind.seen == 1) return model_->forward(x, t, c, hooks);
    make_room();
    kind.inputs.clear();  // of a capture that failed
    for (const auto& input : inputs) kind.inputs.push_back(input.defined() ? input.clone() : input);
    const auto& in = kind.inputs;
    DitHooks fixed = hooks;
    if (hooks.rope) fixed.rope = RopeTables{{in[7], in[8]}, {in[9], in[10]}};
    // The model keeps those of its last size alone, and a graph outlives that.
    if (!hooks.rope && !info().rope_axes.empty()) fixed.rope = kind.own = model_->rope(grid(x.sizes()), c.text.size(1));
    auto graph = make_step_graph(x.get_device(), GraphMemory::shared);
    graph->capture([&] { kind.velocity = model_->forward(in[0], in[1], {in[2], in[3], in[4], in[5], in[6]}, fixed); });
    kind.graph = std::move(graph);
    ++captured_;
  }
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].defined()) kind.inputs[i].copy_(inputs[i], true);
  kind.graph->replay();
  return kind.velocity.clone();  // the next graph overwrites it
}

// Before another kind is recorded: the one that was longest unused goes.
void GraphedDenoiser::make_room() {
  while (kinds_.size() > most_kinds)
    kinds_.erase(std::min_element(kinds_.begin(), kinds_.end(),
                                  [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; }));
}

}  // namespace trireme

#include "framework/graphed_denoiser.h"

#include "framework/device_info.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/models/dit/token_set.h"
#include "framework/stream_place.h"

#include <algorithm>
#include <utility>

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
  all.push_back(c.modulation);
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

// A graph of the device, or of the host for tests; null where there are none.
std::unique_ptr<StepGraph> graph_for(const at::Tensor& x) {
  return make_step_graph(x.is_cuda() ? x.get_device() : -1, GraphMemory::shared);
}

Traced* counted_by(const DitHooks& h) { return h.parallel ? dynamic_cast<Traced*>(&h.parallel->ranks()) : nullptr; }

}  // namespace

bool GraphedDenoiser::recordable(const at::Tensor& x, const DitHooks& hooks) {
  if (which_ == RecordedForwards::none || at::GradMode::is_enabled() || hooks.blocks) return false;
  if (hooks.parallel && which_ != RecordedForwards::shared_too) return false;
  if (hooks.parallel && x.is_cuda() && !hooks.parallel->ranks().capturable()) return false;
  if (!graphs_) graphs_ = graph_for(x) != nullptr;
  return *graphs_;
}

void GraphedDenoiser::capture(Kind& kind, const std::vector<at::Tensor>& inputs, const Conditioning& c,
                              const DitHooks& hooks) {
  kind.inputs.clear();  // of a capture that failed
  for (const auto& input : inputs) kind.inputs.push_back(input.defined() ? input.clone() : input);
  const auto& in = kind.inputs;
  DitHooks fixed = hooks;
  if (hooks.rope) fixed.rope = RopeTables{{in[7], in[8]}, {in[9], in[10]}};
  // The model keeps those of its last size alone, and a graph outlives that.
  if (!hooks.rope && !info().rope_axes.empty())
    fixed.rope = kind.own = model_->rope(grid(in[0].sizes()), c.text.size(1));
  auto graph = graph_for(in[0]);
  graph->capture([this, fixed, &kind] {
    const auto& i = kind.inputs;
    kind.velocity = model_->forward(i[0], i[1], {i[2], i[3], i[4], i[5], i[6], i[11]}, fixed);
  });
  kind.graph = std::move(graph);
}

// False: on some rank it cannot be.
bool GraphedDenoiser::capture_together(Kind& kind, const std::vector<at::Tensor>& inputs, const Conditioning& c,
                                       const DitHooks& hooks) {
  Traced* const traced = counted_by(hooks);
  const CommStats before = traced ? traced->stats() : CommStats{};
  std::string why = "another rank cannot record it";
  std::int64_t all = 1;
  try {
    if (inputs[0].is_cuda()) release_device_memory();  // what is cached is not given back within a capture
    capture(kind, inputs, c, hooks);
  } catch (const std::exception& e) {  // the others have to know
    why = first_line(e);
    all = 0;
  }
  if (traced) kind.sent = {traced->stats().calls - before.calls, traced->stats().bytes - before.bytes};
  kind.counted = true;
  hooks.parallel->ranks().all_reduce({&all, 1, DType::i64}, Op::min).wait();
  if (all) return true;
  if (auto tell = std::exchange(message_, {}))
    tell("a forward that ranks share is not recorded as a CUDA graph: " + why);
  kind = Kind{};
  kind.plain = true;
  return false;
}

at::Tensor GraphedDenoiser::forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c,
                                    const DitHooks& hooks) {
  if (!recordable(x, hooks)) return model_->forward(x, t, c, hooks);
  const auto inputs = inputs_of(x, t, c, hooks);
  Kinds& kinds = kinds_[hooks.parallel];
  Kind& kind = kinds[key_of(inputs, hooks)];
  kind.last_use = ++clock_;
  // The first forward fills caches and lets libraries choose their kernels.
  if (kind.plain || (!kind.graph && ++kind.seen == 1)) return model_->forward(x, t, c, hooks);
  if (!kind.graph) {
    make_room(kinds);
    if (!hooks.parallel)
      capture(kind, inputs, c, hooks);
    else if (!capture_together(kind, inputs, c, hooks))
      return model_->forward(x, t, c, hooks);
    ++captured_;
  }
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].defined()) kind.inputs[i].copy_(inputs[i], true);
  kind.graph->replay();
  if (Traced* const traced = counted_by(hooks)) {
    kind.place = stream_place(x.device());
    traced->replayed(std::exchange(kind.counted, false) ? CommStats{} : kind.sent, kind.place);
  }
  return kind.velocity.clone();  // the next graph overwrites it
}

// Before another kind is recorded: the one that was longest unused goes.
void GraphedDenoiser::make_room(Kinds& kinds) {
  while (kinds.size() > most_kinds)
    kinds.erase(std::min_element(kinds.begin(), kinds.end(),
                                 [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; }));
}

}  // namespace trireme

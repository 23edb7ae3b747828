// A pass through the layers.
#include "comm/error.h"
#include "framework/models/causal_lm.h"
#include "framework/nn/checkpoint.h"
#include "framework/nn/lm_ops.h"

#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme {
struct CausalLm::Pass {
  std::shared_ptr<const nn::SampleLayout> layout;
  nn::KvCache* cache = nullptr;
  nn::CachedLayout cached;
  at::Tensor cos, sin;  // f32 [T, 1, head_dim]
};

at::Tensor CausalLm::Stream::whole() const { return change.defined() ? x + change : x; }

at::Tensor CausalLm::apply(const LmLinear& l, const at::Tensor& x) const {
  return l.target >= 0 ? store_->project(l.target, x) : at::linear(x, l.weight, l.bias);
}

std::vector<at::Tensor> CausalLm::apply(std::initializer_list<const LmLinear*> all, const at::Tensor& x) const {
  std::vector<std::int64_t> targets;
  for (const LmLinear* l : all)
    if (l->target >= 0) targets.push_back(l->target);
  if (targets.size() == all.size()) return store_->project(targets, x);  // one sum of the input's gradient
  std::vector<at::Tensor> ys;
  for (const LmLinear* l : all) ys.push_back(apply(*l, x));
  return ys;
}

at::Tensor CausalLm::norm(const LmNorm& n, const at::Tensor& x) const { return normed(n, {x, {}}).second; }

std::pair<at::Tensor, at::Tensor> CausalLm::normed(const LmNorm& n, const Stream& s) const {
  const at::Tensor weight = n.weight.to(s.x.scalar_type());
  if (n.bias.defined()) {
    const at::Tensor sum = s.whole();
    return {sum, at::layer_norm(sum, {sum.size(-1)}, weight, n.bias.to(sum.scalar_type()), config_.eps)};
  }
  const nn::Normed y = nn::rms_norm(s.x, s.change, weight, config_.eps);
  return {y.sum, y.y};
}

at::Tensor CausalLm::attention(std::int64_t i, const at::Tensor& x, const Pass& pass) const {
  const CausalLmConfig& c = config_;
  const LmLayer& l = layers_[std::size_t(i)];
  const auto qkv = c.gpt2() ? apply(l.q, x).chunk(3, -1) : apply({&l.q, &l.k, &l.v}, x);
  at::Tensor q = qkv[0].reshape({-1, c.heads, c.head_dim}), k = qkv[1].reshape({-1, c.kv_heads, c.head_dim});
  const at::Tensor v = qkv[2].reshape({-1, c.kv_heads, c.head_dim});
  if (c.qk_norm) {
    q = norm(l.q_norm, q);
    k = norm(l.k_norm, k);
  }
  if (pass.cos.defined()) {
    q = nn::rotated(q, pass.cos, pass.sin);
    k = nn::rotated(k, pass.cos, pass.sin);
  }
  const double scale = (c.scaled ? 1 / std::sqrt(double(c.head_dim)) : 1.0) / (c.by_layer ? double(i + 1) : 1.0);
  return apply(l.o, pass.cache ? nn::cached_attention(q, k, v, *pass.cache, std::size_t(i), pass.cached, scale)
                               : nn::causal_attention(q, k, v, *pass.layout, scale));
}

at::Tensor CausalLm::mlp(const LmLayer& l, const at::Tensor& x) const {
  if (config_.gpt2()) return apply(l.down, at::gelu(apply(l.up, x), "tanh"));
  if (l.gate.target >= 0 && l.up.target >= 0 && l.down.target >= 0)
    if (const at::Tensor y = store_->gated(l.gate.target, l.up.target, l.down.target, x); y.defined()) return y;
  const auto parts = apply({&l.gate, &l.up}, x);
  return apply(l.down, nn::swiglu(parts[0], parts[1]));
}

CausalLm::Stream CausalLm::layer(std::int64_t i, const Stream& s, const Pass& pass) const {
  if (before_layer_) before_layer_(i);
  const LmLayer& l = layers_[std::size_t(i)];
  const auto [x, to_attend] = normed(l.before_attention, s);
  const auto [y, to_mlp] = normed(l.before_mlp, {x, attention(i, to_attend, pass)});
  return {y, mlp(l, to_mlp)};
}

void CausalLm::check(const TokenBatch& batch, const nn::KvCache* cache) const {
  const auto total = std::accumulate(batch.lengths.begin(), batch.lengths.end(), std::int64_t(0));
  if (batch.ids.dim() != 1 || batch.ids.size(0) != total)
    throw Error(ExitCode::bug, "token batch", "the lengths of its samples do not sum to its tokens");
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const std::int64_t longest = batch.lengths[i] + (cache ? cache->lengths[i] : 0);
    if (config_.max_length > 0 && longest > config_.max_length)
      throw UsageError(
          "sample " + std::to_string(i),
          "has " + std::to_string(longest) + " tokens, the model takes " + std::to_string(config_.max_length),
          "shorten it");
    if (cache && longest > cache->capacity) throw Error(ExitCode::bug, "key-value cache", "is too small");
  }
}

at::Tensor CausalLm::embed(const at::Tensor& ids, const at::Tensor& positions) const {
  const at::Tensor x = at::embedding(embedding_, ids);
  return config_.gpt2() ? x + at::embedding(positions_, positions) : x;
}

// RoPE's angles of a pass; GPT-2 has none.
void CausalLm::turn(Pass& pass, const at::Tensor& positions) const {
  if (config_.gpt2()) return;
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(1) * frequencies_;
  const at::Tensor both = at::cat({angles, angles}, 1).unsqueeze(1);
  pass.cos = both.cos();
  pass.sin = both.sin();
}

std::shared_ptr<const nn::SampleLayout> CausalLm::layout(const std::vector<std::int64_t>& lengths,
                                                         at::Device device) const {
  if (!layout_ || layout_->lengths != lengths || layout_->positions.device() != device)
    layout_ = std::make_shared<const nn::SampleLayout>(nn::sample_layout(lengths, device));
  return layout_;
}

at::Tensor CausalLm::embedded(const TokenBatch& batch) const {
  check(batch, nullptr);
  return embed(batch.ids, layout(batch)->positions);
}

CausalLm::Stream CausalLm::layers(at::Tensor x, const std::vector<std::int64_t>& lengths) const {
  Pass pass;
  pass.layout = layout(lengths, x.device());
  turn(pass, pass.layout->positions);
  const bool again = checkpointing_ && at::GradMode::is_enabled();
  // Without it no backward is run: the base has no gradient, and adapters are not inputs of a layer.
  if (again && !x.requires_grad()) x = x.detach().requires_grad_();
  Stream s{x, {}};
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    if (!again) {
      s = layer(i, s, pass);
      continue;
    }
    s.x = nn::checkpointed(
        [this, i, pass](const at::Tensor& in, std::span<const at::Tensor>) {
          return layer(i, {in, {}}, pass).whole();
        },
        s.x, {});
  }
  return s;
}

at::Tensor CausalLm::through_layers(const at::Tensor& x, const std::vector<std::int64_t>& lengths) const {
  return layers(x, lengths).whole();
}

at::Tensor CausalLm::hidden(const TokenBatch& batch) const {
  return normed(norm_, layers(embedded(batch), batch.lengths)).second;
}

at::Tensor CausalLm::hidden(const TokenBatch& batch, nn::KvCache& cache) const {
  check(batch, &cache);
  const at::NoGradGuard no_grad;
  Pass pass;
  pass.cache = &cache;
  pass.cached = nn::cached_layout(cache, batch.lengths, batch.ids.device());
  Stream s{embed(batch.ids, pass.cached.positions), {}};
  turn(pass, pass.cached.positions);
  for (std::int64_t i = 0; i < config_.layers; ++i) s = layer(i, s, pass);
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) cache.lengths[i] += batch.lengths[i];
  return normed(norm_, s).second;
}

at::Tensor CausalLm::logits(const at::Tensor& hidden) const { return at::linear(hidden, head()); }

}  // namespace trireme

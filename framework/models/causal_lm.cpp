#include "framework/models/causal_lm.h"

#include "comm/error.h"
#include "framework/base/drawn.h"

#include <array>
#include <cmath>
#include <set>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr double std_of_draws = 0.02;  // initializer_range of all families

// What published files hold beside weights: RoPE's frequencies, GPT-2's masks, the head that is the embedding.
bool no_weight(const std::string& name, bool tied) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         (tied && name == "lm_head.weight");
}

std::vector<std::int64_t> on_disk(const LmWeight& w) {
  auto shape = w.shape;
  if (w.transposed) std::swap(shape[0], shape[1]);
  return shape;
}

// A head of its own, whatever config.json says of ties: transformers then believes the weights.
bool has_other_head(const HfFolder& folder, const CausalLmConfig& config) {
  if (!folder.has("lm_head.weight")) return false;
  const std::array shape{config.vocab, config.hidden};
  for (const char* embedding : {"model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"})
    if (folder.has(embedding)) {
      const at::Tensor head = folder.tensor("lm_head.weight", shape);
      return !head.equal(folder.tensor(embedding, shape).to(head.scalar_type()));
    }
  return false;
}

// Before anything is read: every tensor is there, and none that the model has no place for, since a deeper model's
// first layers must not pass for this one.
void check_tensors(const HfFolder& folder, const CausalLmConfig& config,
                   const std::function<std::string(const std::string&)>& name_of) {
  std::set<std::string> known;
  (void)CausalLm(config, [&](const LmWeight& w) {
    known.insert(name_of(w.name));
    return folder.tensor(name_of(w.name), on_disk(w));
  });
  for (const auto& name : folder.names())
    if (!known.contains(name) && !no_weight(name, config.tied))
      throw DataError(folder.file_of(name), "holds tensor '" + name + "', which config.json has no place for",
                      "the weights do not belong to this config.json");
}

}  // namespace

CausalLm::CausalLm(CausalLmConfig config, const Source& source) : config_(std::move(config)) {
  layers_.resize(std::size_t(config_.layers));
  visit([&](const LmWeight& w, at::Tensor& t) { t = source(w); });
  if (!config_.gpt2())
    frequencies_ = at::tensor(config_.rope.frequencies(config_.head_dim), at::kFloat).to(embedding_.device());
}

LmWeights LmWeights::open(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype) {
  const auto folder = std::make_shared<const HfFolder>(path);
  CausalLmConfig config = parse_causal_lm_config(folder->config(), folder->config_file());
  const at::ScalarType type = dtype.value_or(config.dtype);
  config.tied = config.tied && !has_other_head(*folder, config);
  // The published GPT-2 was saved without its outer module.
  const bool bare = config.gpt2() && !folder->has("transformer.wte.weight") && folder->has("wte.weight");
  const auto name_of = [bare](const std::string& name) {
    return bare && name.starts_with("transformer.") ? name.substr(12) : name;
  };
  check_tensors(*folder, config, name_of);
  const auto read = [=](const LmWeight& w) {
    // A copy, never the mapping itself: the file may change while the model is used.
    const at::Tensor t = folder->tensor(name_of(w.name), on_disk(w)).to(device, type, false, true);
    return w.transposed ? t.t().contiguous() : t;
  };
  return {std::move(config), read, at::TensorOptions(device).dtype(type)};
}

at::Tensor drawn_weight(const LmWeight& w, std::uint64_t seed, at::TensorOptions options) {
  if (w.kind == LmWeight::one) return at::ones(w.shape, options);
  if (w.kind == LmWeight::zero) return at::zeros(w.shape, options);
  return drawn_normal(w.shape, w.std, seed, w.name, options);
}

CausalLm CausalLm::random(const CausalLmConfig& config, std::uint64_t seed, at::Device device, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  return CausalLm(config, [&](const LmWeight& w) { return drawn_weight(w, seed, options); });
}

void CausalLm::visit_layer(std::int64_t i, const Visit& f) {
  const CausalLmConfig& c = config_;
  LmLayer& l = layers_[std::size_t(i)];
  const bool gpt2 = c.gpt2();
  const std::string at = (gpt2 ? "transformer.h." : "model.layers.") + std::to_string(i) + ".";
  const auto one = [&](LmWeight w, at::Tensor& t) {
    w.layer = i;
    f(w, t);
  };
  const auto norm = [&](LmNorm& n, const char* name, std::int64_t width) {
    one({at + name + ".weight", {width}, LmWeight::one}, n.weight);
    if (gpt2) one({at + name + ".bias", {width}, LmWeight::zero}, n.bias);
  };
  const auto linear = [&](LmLinear& p, const char* name, std::int64_t out, std::int64_t in, bool bias, bool residual) {
    p.name = at + name;
    const double std = std_of_draws / (gpt2 && residual ? std::sqrt(2.0 * double(c.layers)) : 1.0);
    one({p.name + ".weight", {out, in}, LmWeight::matrix, gpt2, std}, p.weight);
    if (bias) one({p.name + ".bias", {out}, LmWeight::zero}, p.bias);
  };
  const std::int64_t h = c.hidden, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  if (gpt2) {
    norm(l.before_attention, "ln_1", h);
    linear(l.q, "attn.c_attn", 3 * h, h, true, false);
    linear(l.o, "attn.c_proj", h, h, true, true);
    norm(l.before_mlp, "ln_2", h);
    linear(l.up, "mlp.c_fc", c.intermediate, h, true, false);
    linear(l.down, "mlp.c_proj", h, c.intermediate, true, true);
    return;
  }
  norm(l.before_attention, "input_layernorm", h);
  linear(l.q, "self_attn.q_proj", q, h, c.qkv_bias, false);
  linear(l.k, "self_attn.k_proj", kv, h, c.qkv_bias, false);
  linear(l.v, "self_attn.v_proj", kv, h, c.qkv_bias, false);
  linear(l.o, "self_attn.o_proj", h, q, c.out_bias, true);
  if (c.qk_norm) {
    norm(l.q_norm, "self_attn.q_norm", c.head_dim);
    norm(l.k_norm, "self_attn.k_norm", c.head_dim);
  }
  norm(l.before_mlp, "post_attention_layernorm", h);
  linear(l.gate, "mlp.gate_proj", c.intermediate, h, c.mlp_bias, false);
  linear(l.up, "mlp.up_proj", c.intermediate, h, c.mlp_bias, false);
  linear(l.down, "mlp.down_proj", h, c.intermediate, c.mlp_bias, true);
}

void CausalLm::visit(const Visit& f) {
  const CausalLmConfig& c = config_;
  const bool gpt2 = c.gpt2();
  f({gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight",
     {c.vocab, c.hidden},
     LmWeight::embedding,
     false,
     std_of_draws},
    embedding_);
  if (gpt2)
    f({"transformer.wpe.weight", {c.max_length, c.hidden}, LmWeight::embedding, false, std_of_draws}, positions_);
  for (std::int64_t i = 0; i < c.layers; ++i) visit_layer(i, f);
  const std::string last = gpt2 ? "transformer.ln_f" : "model.norm";
  f({last + ".weight", {c.hidden}, LmWeight::one}, norm_.weight);
  if (gpt2) f({last + ".bias", {c.hidden}, LmWeight::zero}, norm_.bias);
  if (!c.tied) f({"lm_head.weight", {c.vocab, c.hidden}, LmWeight::matrix, false, std_of_draws}, head_);
}

std::vector<nn::Projection> CausalLm::projections() const {
  std::vector<nn::Projection> all;
  for (const auto& l : layers_)
    for (const LmLinear* p : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down})
      if (p->weight.defined()) all.push_back(*p);
  return all;
}

std::vector<std::pair<LmWeight, at::Tensor>> CausalLm::weights() const {
  std::vector<std::pair<LmWeight, at::Tensor>> all;
  CausalLm shared = *this;
  shared.visit([&](const LmWeight& w, at::Tensor& t) { all.emplace_back(w, t); });
  return all;
}

void CausalLm::set_weight(const LmWeight& weight, const at::Tensor& value) {
  const Visit set = [&](const LmWeight& w, at::Tensor& t) {
    if (w.name == weight.name) t = value;
  };
  weight.layer < 0 ? visit(set) : visit_layer(weight.layer, set);
}

void CausalLm::attach(nn::AdapterStore* store, const std::map<std::string, std::int64_t>& target_of_module) {
  store_ = store;
  for (auto& l : layers_)
    for (LmLinear* p : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) {
      const auto found = target_of_module.find(p->name);
      p->target = store && p->weight.defined() && found != target_of_module.end() ? found->second : -1;
    }
}

nn::KvCache CausalLm::cache(std::int64_t samples, std::int64_t capacity) const {
  nn::KvCache all;
  all.capacity = capacity;
  all.lengths.assign(std::size_t(samples), 0);
  for (std::int64_t i = 0; i < config_.layers; ++i)
    for (auto* of : {&all.k, &all.v})
      of->push_back(at::zeros({samples, capacity, config_.kv_heads, config_.head_dim}, embedding_.options()));
  return all;
}

}  // namespace trireme

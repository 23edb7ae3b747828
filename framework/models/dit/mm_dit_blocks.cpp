#include "framework/models/dit/mm_dit_blocks.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/dit_pointwise.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/models/dit/token_set.h"

#include <cmath>

#include <ATen/ATen.h>

namespace trireme::dit {
namespace {

RopeTable part(const RopeTable& t, std::int64_t first, std::int64_t n) {
  if (!t.cos.defined() || t.cos.size(-2) == n) return t;
  return {t.cos.narrow(-2, first, n), t.sin.narrow(-2, first, n)};
}

template <class T>
void norm_and_rotate(const at::Tensor& qkv, const QkNorm& first, const QkNorm& second, std::int64_t split,
                     const DenoiserInfo& info, const RopeTable& table, bool rotate_k) {
  const auto weight = [](const at::Tensor& w) { return static_cast<const T*>(w.const_data_ptr()); };
  const RopeTable t = table.cos.defined() ? RopeTable{table.cos.contiguous(), table.sin.contiguous()} : table;
  kernels::QkJob<T> job{static_cast<T*>(qkv.mutable_data_ptr()),
                        weight(first.q),
                        weight(first.k),
                        weight(second.q),
                        weight(second.k),
                        nullptr,
                        nullptr,
                        qkv.size(0),
                        qkv.size(1),
                        split,
                        info.heads,
                        info.head_dim,
                        0,
                        rotate_k,
                        1e-6F};
  if (t.cos.defined()) {
    job.cos = t.cos.const_data_ptr<float>();
    job.sin = t.sin.const_data_ptr<float>();
    job.table_stride = t.cos.dim() == 3 ? t.cos.stride(0) : 0;
  }
  kernels::norm_and_rotate(job, buffer_of(qkv).place);
}

// The streams' queries, keys and values as one joint sequence [B, M + n, 3 D].
at::Tensor joint_qkv(const DoubleBlock& b, const at::Tensor& text, const at::Tensor& image, const JointPass& pass) {
  if (image.size(0) > 1 || !fused(image) || !b.image.qkv.whole.weight.defined())
    return pass.join(b.text.qkv(text), b.image.qkv(image));
  const at::Tensor all = at::empty({1, text.size(1) + image.size(1), b.image.qkv.whole.bias.size(0)}, image.options());
  const auto into = [](at::Tensor out, const Linear& l, const at::Tensor& x) {
    at::addmm_out(out, l.bias, x, l.weight.t());
  };
  into(pass.text_of(all)[0], b.text.qkv.whole, text[0]);
  into(pass.image_of(all)[0], b.image.qkv.whole, image[0]);
  return all;
}

DoubleBlock::Stream stream(WeightList& w, const std::string& at, const DenoiserInfo& info, std::int64_t inner,
                           bool text) {
  using Kind = DitWeight::Kind;
  const std::int64_t width = info.heads * info.head_dim;
  const std::string attn = at + ".attn.", q = text ? "add_q_proj" : "to_q", k = text ? "add_k_proj" : "to_k",
                    v = text ? "add_v_proj" : "to_v";
  DoubleBlock::Stream s;
  s.modulation = {w.linear(at + (text ? ".norm1_context.linear" : ".norm1.linear"), 6 * width, width, Kind::gate)};
  s.qkv = w.stacked({{attn + q, width}, {attn + k, width}, {attn + v, width}}, width);
  s.norm.q = w.norm(attn + (text ? "norm_added_q" : "norm_q"), info.head_dim);
  s.norm.k = w.norm(attn + (text ? "norm_added_k" : "norm_k"), info.head_dim);
  s.out = w.linear(attn + (text ? "to_add_out" : "to_out.0"), width, width);
  const std::string ff = at + (text ? ".ff_context.net." : ".ff.net.");
  s.mlp = mlp(w, ff + "0.proj", ff + "2", width, inner);
  return s;
}

}  // namespace

JointPass::JointPass(const DenoiserInfo& model, const DitHooks& h, const Grid& grid, std::int64_t text_tokens,
                     const RopeTables& tables, std::int64_t batch)
    : info(model), hooks(h), text(text_tokens), picture_(grid.tokens()) {
  if (hooks.text_bias != 0 && !info.joint_text)
    throw UsageError("text anchoring",
                     "the layout " + info.layout + " has no joint attention: a bias of all text keys cancels",
                     "leave it out");
  const TokenSet* set = hooks.tokens;
  const bool sparse = set && !set->is_dense();
  tokens = sparse ? set->active().size(1) : picture_;
  image = tokens;
  if (hooks.parallel) {
    const auto [begin, end] = hooks.parallel->slice(tokens);
    first = begin;
    image = end - begin;
  }
  const auto both = [&](const RopeTable& picture, std::int64_t n) {
    const RopeTable of_text = part(tables.text, 0, text);  // guidance's two texts may differ in length
    return info.text_first ? joined(of_text, text, picture, n) : joined(picture, n, of_text, text);
  };
  rope = both(part(sparse ? set->gather(tables.image, batch) : tables.image, first, image), image);
  if (set && set->keys() == TokenSet::Keys::pre_rope) all_rope = both(tables.image, picture_);
}

at::Tensor JointPass::take(const at::Tensor& x) const {
  const at::Tensor chosen = hooks.tokens ? hooks.tokens->gather(x) : x;
  return image == tokens ? chosen : chosen.narrow(1, first, image);
}

at::Tensor JointPass::give(const at::Tensor& x) const {
  const at::Tensor all = hooks.parallel ? hooks.parallel->gather(x, tokens) : x;
  return hooks.tokens ? hooks.tokens->scatter(all, picture_) : all;
}

at::Tensor JointPass::join(const at::Tensor& t, const at::Tensor& i) const {
  return info.text_first ? at::cat({t, i}, 1) : at::cat({i, t}, 1);
}

at::Tensor JointPass::text_of(const at::Tensor& x) const {
  return info.text_first ? x.narrow(1, 0, text) : x.narrow(1, x.size(1) - text, text);
}

at::Tensor JointPass::image_of(const at::Tensor& x) const {
  return x.narrow(1, info.text_first ? text : 0, x.size(1) - text);
}

bool JointPass::late() const { return hooks.tokens && hooks.tokens->keys() == TokenSet::Keys::pre_rope; }

at::Tensor JointPass::attention(std::int64_t layer, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v) const {
  return attend(layer, apply_rope(q, rope), late() ? k : apply_rope(k, rope), v);
}

at::Tensor JointPass::attention(std::int64_t layer, const at::Tensor& qkv, const QkNorm& text_norm,
                                const QkNorm& image_norm) const {
  const auto parts = [&](const at::Tensor& all) { return all.unflatten(-1, {3, info.heads, info.head_dim}).unbind(2); };
  if (!fused(qkv) || info.head_dim > 256) {  // what the fused kernel holds
    const auto t = parts(text_of(qkv)), i = parts(image_of(qkv));
    return attention(layer, join(rms_norm(t[0], text_norm.q), rms_norm(i[0], image_norm.q)),
                     join(rms_norm(t[1], text_norm.k), rms_norm(i[1], image_norm.k)), join(t[2], i[2]));
  }
  const at::Tensor all = qkv.contiguous();
  const QkNorm &first = info.text_first ? text_norm : image_norm, &second = info.text_first ? image_norm : text_norm;
  const std::int64_t split = info.text_first ? text : all.size(1) - text;
  if (all.scalar_type() == at::kFloat)
    norm_and_rotate<float>(all, first, second, split, info, rope, !late());
  else
    norm_and_rotate<kernels::BrainFloat>(all, first, second, split, info, rope, !late());
  const auto x = parts(all);
  return attend(layer, x[0], x[1], x[2]);
}

at::Tensor JointPass::attention_across(std::int64_t layer, const at::Tensor& qkv, const QkNorm& norm,
                                       double eps) const {
  const auto x = qkv.unflatten(-1, {3, info.heads, info.head_dim}).unbind(2);
  if (norm_rows(qkv, norm, info.heads, rope, !late(), eps)) return attend(layer, x[0], x[1], x[2]);
  const auto normed = [&](const at::Tensor& part, const at::Tensor& weight) {
    return rms_norm(part.flatten(2), weight, eps).view(part.sizes());
  };
  return attention(layer, normed(x[0], norm.q), normed(x[1], norm.k), x[2]);
}

at::Tensor JointPass::attend(std::int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
  const nn::AttentionScores scores{hooks.logit_scale / std::sqrt(double(info.head_dim)), hooks.text_bias,
                                   hooks.form == DitHooks::Bias::bias};
  const auto joint = [&](const at::Tensor& keys, const at::Tensor& values) {
    const std::int64_t begin = info.text_first ? 0 : keys.size(1) - text;
    return nn::joint_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), begin, begin + text,
                               scores)
        .transpose(1, 2)
        .flatten(2);
  };
  if (hooks.tokens) {
    const auto everywhere = [&](const at::Tensor& x) {
      return hooks.parallel ? join(text_of(x), hooks.parallel->gather(image_of(x), tokens)) : x;
    };
    const auto all = hooks.tokens->update(layer, everywhere(k), everywhere(v), text, info.text_first);
    return joint(late() ? apply_rope(all.k, all_rope) : all.k, all.v);
  }
  if (!hooks.parallel) return joint(k, v);
  const auto pair = [&](const at::Tensor& x) -> nn::TokenPair {
    return {text ? text_of(x).transpose(1, 2) : at::Tensor(), image_of(x).transpose(1, 2)};
  };
  const at::Tensor out =
      hooks.parallel->attention(pair(q), pair(k), pair(v), scores, tokens).transpose(1, 2).flatten(2);
  if (info.text_first || !text) return out;
  return at::cat({out.narrow(1, text, out.size(1) - text), out.narrow(1, 0, text)}, 1);
}

at::Tensor Modulation::operator()(const ModulationLinear& l) const {
  return made.defined() ? made.narrow(-1, l.first, l.weight.size(0)) : l(temb);
}

at::Tensor DoubleBlock::modulated_image(const at::Tensor& x, const Modulation& modulation) const {
  const auto m = cut(modulation(image.modulation), 6);
  return modulated(x, m[0], m[1]);
}

BlockStreams DoubleBlock::forward(const BlockStreams& in, const Modulation& modulation, const JointPass& pass,
                                  std::int64_t layer) const {
  const auto mi = cut(modulation(image.modulation), 6), mt = cut(modulation(text.modulation), 6);
  const auto attend = [&]() -> BlockStreams {
    const at::Tensor qkv = joint_qkv(*this, modulated(in.text, mt[0], mt[1]), modulated(in.image, mi[0], mi[1]), pass);
    const at::Tensor o = pass.attention(layer, qkv, text.norm, image.norm);
    return {image.out(pass.image_of(o)), text.out(pass.text_of(o))};
  };
  const BlockStreams a = pass.hooks.blocks ? pass.hooks.blocks->attention(layer, attend) : attend();
  const auto rest = [](const Stream& s, const std::vector<at::Tensor>& m, const at::Tensor& x,
                       const at::Tensor& attention) {
    const Gated y = gated_modulated(x, m[2], attention, m[3], m[4]);
    return gated(y.sum, m[5], s.mlp(y.modulated));
  };
  return {rest(image, mi, in.image, a.image), rest(text, mt, in.text, a.text)};
}

at::Tensor SingleBlock::forward(const at::Tensor& x, const Modulation& made, const JointPass& pass,
                                std::int64_t layer) const {
  const auto m = cut(made(modulation), 3);
  const at::Tensor h = modulated(x, m[0], m[1]);
  const auto attend = [&]() -> BlockStreams { return {pass.attention(layer, qkv(h), norm, norm), {}}; };
  const at::Tensor a = (pass.hooks.blocks ? pass.hooks.blocks->attention(layer, attend) : attend()).image;
  return gated(x, m[2], project(a, gelu_of(up, h)));
}

// Of attention and MLP beside each other: two products, so that neither is copied.
at::Tensor SingleBlock::project(const at::Tensor& attention, const at::Tensor& inner) const {
  if (!fused(inner)) return out(at::cat({attention, inner}, 2));
  const std::int64_t width = attention.size(2);
  const auto rows = [](const at::Tensor& x) { return x.flatten(0, 1); };
  at::Tensor sum = at::addmm(out.bias, rows(inner), out.weight.narrow(1, width, inner.size(2)).t());
  sum.addmm_(rows(attention), out.weight.narrow(1, 0, width).t());
  return sum.view({attention.size(0), attention.size(1), width});
}

DoubleBlock double_block(WeightList& w, const std::string& at, const DenoiserInfo& info, std::int64_t inner) {
  DoubleBlock b;
  b.image = stream(w, at, info, inner, false);
  b.text = stream(w, at, info, inner, true);
  return b;
}

SingleBlock single_block(WeightList& w, const std::string& at, const DenoiserInfo& info, std::int64_t inner) {
  using Kind = DitWeight::Kind;
  const std::int64_t width = info.heads * info.head_dim;
  const std::string attn = at + ".attn.";
  SingleBlock b;
  b.modulation = {w.linear(at + ".norm.linear", 3 * width, width, Kind::gate)};
  b.qkv = w.stacked({{attn + "to_q", width}, {attn + "to_k", width}, {attn + "to_v", width}}, width);
  b.up = w.linear(at + ".proj_mlp", inner, width);
  b.norm.q = w.norm(attn + "norm_q", info.head_dim);
  b.norm.k = w.norm(attn + "norm_k", info.head_dim);
  b.out = w.linear(at + ".proj_out", width, width + inner);
  return b;
}

at::Tensor run_blocks(const std::vector<DoubleBlock>& doubles, const std::vector<SingleBlock>& singles, BlockStreams x,
                      const Modulation& modulation, const JointPass& pass) {
  BlockCache* cache = pass.hooks.blocks;
  const BlockStreams in = x;
  if (cache) {
    const auto modulated = [&] { return doubles.front().modulated_image(in.image, modulation); };
    if (const auto instead = cache->before_blocks(in, modulated)) return instead->image;
  }
  BlockStreams after_first;
  for (std::size_t i = 0; i < doubles.size(); ++i) {
    x = doubles[i].forward(x, modulation, pass, std::int64_t(i));
    if (i == 0 && cache) {
      after_first = x;
      if (const auto instead = cache->after_first_block(in, x)) return instead->image;
    }
  }
  if (!singles.empty()) {
    at::Tensor joint = pass.join(x.text, x.image);
    for (std::size_t i = 0; i < singles.size(); ++i)
      joint = singles[i].forward(joint, modulation, pass, std::int64_t(doubles.size() + i));
    x = {pass.image_of(joint), pass.text_of(joint)};
  }
  if (cache) cache->after_blocks(in, after_first, x);
  return x.image;
}

at::Tensor TimeText::operator()(const at::Tensor& t, const Conditioning& c) const {
  at::Tensor all = time(sinusoid(1000 * t, 256));
  if (guidance.first.weight.defined()) all = all + guidance(sinusoid(1000 * c.guidance, 256));
  return at::silu(all + text(c.pooled));
}

TimeText time_text(WeightList& w, const DenoiserInfo& info) {
  const std::int64_t width = info.heads * info.head_dim;
  const std::string at = "time_text_embed.";
  TimeText t;
  t.time = embedder(w, at + "timestep_embedder", 256, width);
  if (info.distilled_guidance) t.guidance = embedder(w, at + "guidance_embedder", 256, width);
  t.text = embedder(w, at + "text_embedder", info.pooled_width, width);
  return t;
}

at::Tensor FinalLayer::forward(const at::Tensor& x, const Modulation& made) const {
  const auto m = cut(made(modulation), 2);
  return out(modulated(x, m[1], m[0]));
}

FinalLayer final_layer(WeightList& w, std::int64_t width, std::int64_t out) {
  FinalLayer f;
  f.modulation = {w.linear("norm_out.linear", 2 * width, width, DitWeight::gate)};
  f.out = w.linear("proj_out", out, width, DitWeight::gate);
  return f;
}

ModulationRow::ModulationRow(std::vector<DoubleBlock>& doubles, std::vector<SingleBlock>& singles, FinalLayer& last) {
  for (auto& b : doubles) add(b.image.modulation), add(b.text.modulation);
  for (auto& b : singles) add(b.modulation);
  add(last.modulation);
}

void ModulationRow::add(ModulationLinear& l) {
  l.first = width_;
  width_ += l.weight.size(0);
  all_.push_back(&l);
}

at::Tensor ModulationRow::of_levels(const TimeText& time, const at::Tensor& t, const Conditioning& c) const {
  if (!c.pooled.defined() || (time.guidance.first.weight.defined() && !c.guidance.defined()))
    return {};  // forward() says so
  const std::int64_t levels = t.size(0), rows = c.pooled.size(0);
  constexpr std::int64_t most_bytes = std::int64_t(1) << 27;
  const at::Tensor& like = all_.front()->weight;
  if (levels * rows * width_ * std::int64_t(like.element_size()) > most_bytes) return {};
  Conditioning all;
  all.pooled = c.pooled.repeat({levels, 1});
  if (c.guidance.defined()) all.guidance = c.guidance.repeat({levels});
  const at::Tensor temb = time(t.repeat_interleave(rows), all);
  const at::Tensor all_values = at::empty({levels * rows, width_}, like.options());
  for (const auto* l : all_) all_values.narrow(1, l->first, l->weight.size(0)).copy_((*l)(temb));
  return all_values.view({levels, rows, width_});
}

Modulation ModulationRow::of(const TimeText& time, const at::Tensor& t, const Conditioning& c) const {
  if (!c.modulation.defined()) return {time(t, c), {}};
  expect_shape("modulation", c.modulation, {t.size(0), width_});
  return {{}, c.modulation};
}

}  // namespace trireme::dit

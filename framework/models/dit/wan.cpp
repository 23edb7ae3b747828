// Wan (Alibaba, 2025) in diffusers' layout, WanTransformer3DModel: video, one stream of image tokens that attends to
// itself, then to the text; modulation of one table a block and one projection of the time for all.
#include "comm/error.h"
#include "framework/models/dit/mm_dit_blocks.h"
#include "framework/models/dit/wan_conditions.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using namespace dit;
using nlohmann::json;

DenoiserInfo info_of(const json& c) {
  DenoiserInfo i;
  i.layout = "wan";
  i.joint_text = i.text_first = false;
  std::vector<std::int64_t> patch;
  for (const auto& p : c.value("patch_size", json::array({1, 2, 2})))
    patch.push_back(p.is_number_integer() ? p.get<std::int64_t>() : 0);
  if (patch.size() != 3 || patch[1] != patch[2] || *std::ranges::min_element(patch) < 1 ||
      *std::ranges::max_element(patch) > 64)
    throw DataError("config.json", "patch_size is not [frames, side, side]", "such models are not built here");
  i.patch_frames = patch[0];
  i.patch = patch[1];
  const std::int64_t in = config_count(c, "in_channels", 16);
  i.channels = config_count(c, "out_channels", in);
  i.image_channels = in - i.channels;
  if (i.image_channels < 0)
    throw DataError("config.json", "out_channels is above in_channels", "take the file as diffusers wrote it");
  i.heads = config_count(c, "num_attention_heads", 40);
  i.head_dim = config_count(c, "attention_head_dim", 128);
  i.layers = config_count(c, "num_layers", 40);
  const std::int64_t side = 2 * (i.head_dim / 6);
  i.rope_axes = config_axes(json::array({i.head_dim - 2 * side, side, side}), i.head_dim);
  i.text_width = config_count(c, "text_dim", 4096);
  const auto norm = c.find("qk_norm");
  if (norm != c.end() && *norm != "rms_norm_across_heads")
    throw DataError("config.json", "qk_norm is not rms_norm_across_heads", "such models are not built here");
  const json own = c.value("trireme", json::object());
  i.base_side = config_count(own, "base_side", 60);  // 720 x 1280 pixels: 45 x 80
  i.base_text = config_count(own, "base_text", 512);
  i.latent_factor = config_count(own, "latent_factor", 8);
  return i;
}

struct Attention {
  StackedLinear qkv;  // cross-attention: k and v, and q apart
  Linear q, out;
  QkNorm norm;            // over all heads together
  StackedLinear added;    // k and v of picture tokens, where the model has them
  at::Tensor added_norm;  // of k
};

struct Block {
  at::Tensor table;  // [1, 6, D]: shift, scale, gate of self-attention, then of the MLP
  Attention self, cross;
  at::Tensor norm_weight, norm_bias;  // before cross-attention; undefined: none
  Mlp mlp;
};

class Wan : public Denoiser {
 public:
  Wan(const json& config, const DitWeights& source)
      : config_(config), info_(info_of(config)), width_(info_.heads * info_.head_dim), list_(source) {
    using Kind = DitWeight::Kind;
    const auto eps = config.find("eps");
    if (eps != config.end() && eps->is_number()) eps_ = eps->get<double>();
    const std::int64_t area = info_.patch_frames * info_.patch * info_.patch;
    const std::int64_t in = info_.channels + info_.image_channels;
    patch_.weight = list_.one("patch_embedding.weight", {width_, in, info_.patch_frames, info_.patch, info_.patch},
                              Kind::matrix, 1 / std::sqrt(double(in * area)));
    patch_.bias = list_.one("patch_embedding.bias", {width_}, Kind::zero);
    conditions_ = wan_conditions(list_, config, width_, info_.text_width);
    for (std::int64_t i = 0; i < info_.layers; ++i) blocks_.push_back(block("blocks." + std::to_string(i) + "."));
    head_table_ = list_.one("scale_shift_table", {1, 2, width_}, Kind::zero);
    head_ = list_.linear("proj_out", info_.channels * area, width_, Kind::gate);
  }

  const DenoiserInfo& info() const override { return info_; }
  const json& config() const override { return config_; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return list_.all(); }

  RopeTables rope(const Grid& grid, std::int64_t, const Offsets& offsets) const override {
    return {{}, rope_table(grid, offsets, info_.rope_axes, info_.theta, head_.weight.device())};
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks& hooks) override {
    const Grid grid = checked_inputs(info_, x, t, c);
    const JointPass pass(info_, hooks, grid, 0, hooks.rope ? *hooks.rope : tables_.of(*this, grid, 0), x.size(0));
    const WanConditions::Embedded e = conditions_(t, c);
    const at::Tensor latent = info_.image_channels ? at::cat({x, c.image}, 1) : x;
    const at::Tensor tokens =
        at::linear(pass.take(patchify(latent, info_.patch, info_.patch_frames)), patch_.weight.flatten(1), patch_.bias);
    const at::Tensor out = last(run({tokens, {}}, e, pass).image, e.time);
    return unpatchify(pass.give(out), x.sizes(), info_.patch, info_.patch_frames, true);
  }

 private:
  Attention attention(const std::string& at, std::int64_t picture) {
    Attention a;
    if (picture >= 0) {
      a.q = list_.linear(at + "to_q", width_, width_);
      a.qkv = list_.stacked({{at + "to_k", width_}, {at + "to_v", width_}}, width_);
    } else {
      a.qkv = list_.stacked({{at + "to_q", width_}, {at + "to_k", width_}, {at + "to_v", width_}}, width_);
    }
    a.norm = {list_.norm(at + "norm_q", width_), list_.norm(at + "norm_k", width_)};
    a.out = list_.linear(at + "to_out.0", width_, width_);
    if (picture > 0) {
      a.added = list_.stacked({{at + "add_k_proj", width_}, {at + "add_v_proj", width_}}, picture);
      a.added_norm = list_.norm(at + "norm_added_k", width_);
    }
    return a;
  }

  Block block(const std::string& at) {
    using Kind = DitWeight::Kind;
    Block b;
    b.table = list_.one(at + "scale_shift_table", {1, 6, width_}, Kind::zero);
    b.self = attention(at + "attn1.", -1);
    b.cross = attention(at + "attn2.", conditions_.picture_width());
    if (config_.value("cross_attn_norm", json(true)) == json(true)) {
      b.norm_weight = list_.norm(at + "norm2", width_);
      b.norm_bias = list_.one(at + "norm2.bias", {width_}, Kind::zero);
    }
    b.mlp = dit::mlp(list_, at + "ffn.net.0.proj", at + "ffn.net.2", width_, config_count(config_, "ffn_dim", 13824));
    return b;
  }

  at::Tensor heads(const at::Tensor& x) const { return x.unflatten(2, {info_.heads, info_.head_dim}); }

  // Queries, or keys that begin a row of keys and values, normed: [B, H, n, d].
  at::Tensor normed(const at::Tensor& x, const at::Tensor& whole, const at::Tensor& weight) const {
    const bool there = norm_rows(whole, {weight, {}}, info_.heads, {}, false, eps_);
    return heads(there ? x : rms_norm(x, weight, eps_)).transpose(1, 2);
  }

  at::Tensor cross_attention(const Attention& a, const at::Tensor& x, const WanConditions::Embedded& e) const {
    const at::Tensor projected = a.q(x), q = normed(projected, projected, a.norm.q);
    const auto over = [&](const StackedLinear& kv, const at::Tensor& norm_k, const at::Tensor& keys) {
      const at::Tensor whole = kv(keys);
      const auto parts = whole.chunk(2, 2);
      return nn::joint_attention(q, normed(parts[0], whole, norm_k), heads(parts[1]).transpose(1, 2), 0, 0,
                                 {1 / std::sqrt(double(info_.head_dim))});
    };
    at::Tensor all = over(a.qkv, a.norm.k, e.text);
    if (e.picture.defined()) all = all + over(a.added, a.added_norm, e.picture);
    return a.out(all.transpose(1, 2).flatten(2));
  }

  // Shift, scale, gate, shift, scale, gate: f32 [B, D] each.
  static std::vector<at::Tensor> modulation(const Block& b, const WanConditions::Embedded& e) {
    return (b.table.to(at::kFloat) + e.modulation).unbind(1);
  }

  BlockStreams through(std::int64_t layer, const BlockStreams& in, const WanConditions::Embedded& e,
                       const JointPass& pass) const {
    const Block& b = blocks_[std::size_t(layer)];
    const auto m = modulation(b, e);
    const at::Tensor& x = in.image;
    const auto attend = [&]() -> BlockStreams {
      const at::Tensor h = modulated(x, m[0], m[1], eps_);
      return {b.self.out(pass.attention_across(layer, b.self.qkv(h), b.self.norm, eps_)), {}};
    };
    const at::Tensor attended = (pass.hooks.blocks ? pass.hooks.blocks->attention(layer, attend) : attend()).image;
    const Gated y = b.norm_weight.defined() ? affine(x, m[2], attended, b) : Gated{gated(x, m[2], attended), {}};
    const at::Tensor& asked = y.modulated.defined() ? y.modulated : y.sum;
    const Gated z = gated_modulated(y.sum, {}, cross_attention(b.cross, asked, e), m[3], m[4], eps_);
    return {gated(z.sum, m[5], b.mlp(z.modulated)), {}};
  }

  // Cross-attention's norm, whose weight and bias are a modulation.
  Gated affine(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& add, const Block& b) const {
    const auto row = [&](const at::Tensor& t) { return t.unsqueeze(0).expand({x.size(0), width_}); };
    return gated_modulated(x, gate, add, row(b.norm_bias.to(at::kFloat)), row(b.norm_weight.to(at::kFloat) - 1), eps_);
  }

  BlockStreams run(const BlockStreams& in, const WanConditions::Embedded& e, const JointPass& pass) const {
    BlockCache* cache = pass.hooks.blocks;
    if (cache)
      if (const auto instead =
              cache->before_blocks(in, [&] { return e.modulation.flatten(1).to(e.text.scalar_type()); }))
        return *instead;
    BlockStreams x = in, first;
    for (std::int64_t i = 0; i < info_.layers; ++i) {
      x = through(i, x, e, pass);
      if (i == 0 && cache) {
        first = x;
        if (const auto instead = cache->after_first_block(in, x)) return *instead;
      }
    }
    if (cache) cache->after_blocks(in, first, x);
    return x;
  }

  at::Tensor last(const at::Tensor& x, const at::Tensor& time) const {
    const auto m = (head_table_.to(at::kFloat) + time.unsqueeze(1)).unbind(1);
    return head_(modulated(x, m[0], m[1], eps_));
  }

  json config_;
  DenoiserInfo info_;
  std::int64_t width_;
  double eps_ = 1e-6;
  WeightList list_;
  Linear patch_, head_;
  WanConditions conditions_;
  std::vector<Block> blocks_;
  at::Tensor head_table_;
  OwnTables tables_;
};

const DenoiserLayouts::Entry registered("WanTransformer3DModel",
                                        [](const json& c, const DitWeights& w) { return std::make_unique<Wan>(c, w); });

}  // namespace
}  // namespace trireme

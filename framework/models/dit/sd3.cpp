// Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206) in diffusers' layout, SD3Transformer2DModel: pictures,
// image first in the joint sequence, a table of positions that is added once instead of a rotation.
#include "comm/error.h"
#include "framework/models/dit/mm_dit_blocks.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace trireme {
namespace {

using namespace dit;
using nlohmann::json;

DenoiserInfo info_of(const json& c) {
  DenoiserInfo i;
  i.layout = "sd3";
  i.text_first = false;
  i.patch = config_count(c, "patch_size", 2);
  i.channels = config_count(c, "in_channels", 16);
  if (config_count(c, "out_channels", i.channels) != i.channels)
    throw DataError("config.json", "out_channels is not in_channels", "such models are not sampled here");
  i.heads = config_count(c, "num_attention_heads", 18);
  i.head_dim = config_count(c, "attention_head_dim", 64);
  i.layers = config_count(c, "num_layers", 18);
  i.text_width = config_count(c, "joint_attention_dim", 4096);
  i.pooled_width = config_count(c, "pooled_projection_dim", 2048);
  const std::int64_t width = i.heads * i.head_dim;
  if (width % 4 || config_count(c, "caption_projection_dim", width) != width)
    throw DataError("config.json", "caption_projection_dim is not the model's width",
                    "take the file as diffusers wrote it");
  const auto norm = c.find("qk_norm");
  if (norm != c.end() && !norm->is_null() && *norm != "rms_norm")
    throw DataError("config.json", "qk_norm is neither null nor rms_norm", "such models are not built here");
  const json own = c.value("trireme", json::object());
  i.base_side =
      config_count(own, "base_side", std::max<std::int64_t>(1, config_count(c, "sample_size", 128) / i.patch));
  i.base_text = config_count(own, "base_text", 333);
  i.latent_factor = config_count(own, "latent_factor", 8);
  return i;
}

// Of one attention's queries, keys and values; norms undefined: none.
struct Projections {
  StackedLinear qkv;
  QkNorm norm;
  struct Heads {
    at::Tensor q, k, v;  // [B, n, H, d]
  };
  Heads operator()(const at::Tensor& x, const DenoiserInfo& info) const {
    const auto parts = qkv(x).unflatten(-1, {3, info.heads, info.head_dim}).unbind(2);
    const auto normed = [](const at::Tensor& a, const at::Tensor& w) { return w.defined() ? rms_norm(a, w) : a; };
    return {normed(parts[0], norm.q), normed(parts[1], norm.k), parts[2]};
  }
};

struct Stream {
  Linear modulation;  // shift, scale, gate, shift, scale, gate; with a second attention: its shift, scale, gate
  Projections attend;
  Linear out;  // undefined in the last block's text, as the MLP: nothing reads it
  Mlp mlp;
};

struct Block {
  Stream image, text;
  Projections second;  // of image tokens to themselves
  Linear second_out;   // undefined: no second attention
  bool dual() const { return second_out.weight.defined(); }
  bool last() const { return !text.out.weight.defined(); }
};

at::Tensor after_attention(const Stream& s, const std::vector<at::Tensor>& m, const at::Tensor& x) {
  return gated(x, m[5], s.mlp(modulated(x, m[3], m[4])));
}

// Sines and cosines of columns, then of rows (Dosovitskiy et al., arXiv 2010.11929, in two dimensions): what a model
// that is not loaded begins with. Positions count as on a grid of `base` a side.
at::Tensor sincos_positions(std::int64_t side, std::int64_t width, std::int64_t base) {
  const at::Tensor position = at::arange(side, at::kDouble) * (double(base) / double(side));
  const std::int64_t half = width / 4;
  const at::Tensor angle = at::outer(position, at::pow(1e4, at::arange(half, at::kDouble) / double(-half)));
  const at::Tensor one = at::cat({angle.sin(), angle.cos()}, 1);  // [side, width / 2]
  return at::cat({one.unsqueeze(0).expand({side, side, -1}), one.unsqueeze(1).expand({side, side, -1})}, 2)
      .reshape({1, side * side, width});
}

class Sd3 : public Denoiser {
 public:
  Sd3(const json& config, const DitWeights& source)
      : config_(config), info_(info_of(config)), width_(info_.heads * info_.head_dim), list_(source) {
    using Kind = DitWeight::Kind;
    const std::int64_t in = info_.channels * info_.patch * info_.patch;
    patch_.weight = list_.one("pos_embed.proj.weight", {width_, info_.channels, info_.patch, info_.patch}, Kind::matrix,
                              1 / std::sqrt(double(in)));
    patch_.bias = list_.one("pos_embed.proj.bias", {width_}, Kind::zero);
    side_ = config_count(config, "pos_embed_max_size", 96);
    positions_ = list_.one("pos_embed.pos_embed", {1, side_ * side_, width_}, Kind::zero);
    if (!positions_.is_meta() && !positions_.any().item<bool>()) {
      const at::NoGradGuard no_grad;
      positions_.copy_(sincos_positions(side_, width_, info_.base_side));
    }
    text_ = list_.linear("context_embedder", width_, info_.text_width);
    time_ = time_text(list_, info_);
    const json dual = config.value("dual_attention_layers", json::array());
    for (std::int64_t i = 0; i < info_.layers; ++i)
      blocks_.push_back(block(i, std::ranges::find(dual, json(i)) != dual.end()));
    last_ = final_layer(list_, width_, in);
  }

  const DenoiserInfo& info() const override { return info_; }
  const json& config() const override { return config_; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return list_.all(); }
  RopeTables rope(const Grid&, std::int64_t, const Offsets&) const override { return {}; }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks& hooks) override {
    const Grid grid = checked_inputs(info_, x, t, c);
    if (x.size(2) != 1) throw UsageError("denoiser", "the layout sd3 makes pictures", "give one frame");
    const RopeTables tables = hooks.rope.value_or(RopeTables{});
    const JointPass pass(info_, hooks, grid, c.text.size(1), tables, x.size(0));
    const JointPass alone(info_, hooks, grid, 0, {{}, tables.image}, x.size(0));
    const at::Tensor temb = time_(t, c);
    const at::Tensor tokens =
        at::linear(patchify(x, info_.patch, 1), patch_.weight.flatten(1), patch_.bias) + positions(grid);
    const at::Tensor out = last_.forward(run({pass.take(tokens), text_(c.text)}, temb, pass, alone).image, {temb, {}});
    return unpatchify(pass.give(out), x.sizes(), info_.patch, 1, true);
  }

 private:
  Projections projections(const std::string& at, const char* q, const char* k, const char* v, const char* norm) {
    Projections p;
    p.qkv = list_.stacked({{at + q, width_}, {at + k, width_}, {at + v, width_}}, width_);
    const auto kind = config_.find("qk_norm");
    if (kind == config_.end() || kind->is_null()) return p;
    p.norm.q = list_.norm(at + norm + "q", info_.head_dim);
    p.norm.k = list_.norm(at + norm + "k", info_.head_dim);
    return p;
  }

  Block block(std::int64_t i, bool dual) {
    using Kind = DitWeight::Kind;
    const std::string at = "transformer_blocks." + std::to_string(i) + ".", attn = at + "attn.";
    const bool last = i + 1 == info_.layers;
    Block b;
    b.image.modulation = list_.linear(at + "norm1.linear", (dual ? 9 : 6) * width_, width_, Kind::gate);
    b.text.modulation = list_.linear(at + "norm1_context.linear", (last ? 2 : 6) * width_, width_, Kind::gate);
    b.image.attend = projections(attn, "to_q", "to_k", "to_v", "norm_");
    b.text.attend = projections(attn, "add_q_proj", "add_k_proj", "add_v_proj", "norm_added_");
    b.image.out = list_.linear(attn + "to_out.0", width_, width_);
    if (!last) b.text.out = list_.linear(attn + "to_add_out", width_, width_);
    if (dual) {
      b.second = projections(at + "attn2.", "to_q", "to_k", "to_v", "norm_");
      b.second_out = list_.linear(at + "attn2.to_out.0", width_, width_);
    }
    b.image.mlp = mlp(list_, at + "ff.net.0.proj", at + "ff.net.2", width_, 4 * width_);
    if (!last) b.text.mlp = mlp(list_, at + "ff_context.net.0.proj", at + "ff_context.net.2", width_, 4 * width_);
    return b;
  }

  // The middle of the table, [1, rows * columns, D].
  at::Tensor positions(const Grid& grid) const {
    if (grid.rows > side_ || grid.columns > side_)
      throw UsageError("denoiser",
                       "the picture has " + std::to_string(std::max(grid.rows, grid.columns)) +
                           " tokens a side, and the model positions for " + std::to_string(side_),
                       "take a smaller size, or sample by tiles");
    return positions_.view({1, side_, side_, width_})
        .narrow(1, (side_ - grid.rows) / 2, grid.rows)
        .narrow(2, (side_ - grid.columns) / 2, grid.columns)
        .reshape({1, grid.rows * grid.columns, width_});
  }

  at::Tensor second_attention(const Block& b, const std::vector<at::Tensor>& m, const at::Tensor& x,
                              const JointPass& alone, std::int64_t layer) const {
    const auto h = b.second(modulated(x, m[6], m[7]), info_);
    return b.second_out(alone.attention(info_.layers + layer, h.q, h.k, h.v));
  }

  BlockStreams through(std::int64_t layer, const BlockStreams& in, const at::Tensor& temb, const JointPass& pass,
                       const JointPass& alone) const {
    const Block& b = blocks_[std::size_t(layer)];
    const auto mi = cut(b.image.modulation(temb), b.dual() ? 9 : 6);
    const auto mt = cut(b.text.modulation(temb), b.last() ? 2 : 6);
    const auto attend = [&]() -> BlockStreams {
      // The last block's text is cut as the final layer: scale, then shift.
      const auto i = b.image.attend(modulated(in.image, mi[0], mi[1]), info_);
      const auto t = b.text.attend(modulated(in.text, mt[b.last() ? 1 : 0], mt[b.last() ? 0 : 1]), info_);
      const at::Tensor o = pass.attention(layer, pass.join(t.q, i.q), pass.join(t.k, i.k), pass.join(t.v, i.v));
      return {b.image.out(pass.image_of(o)), b.last() ? at::Tensor() : b.text.out(pass.text_of(o))};
    };
    const BlockStreams a = pass.hooks.blocks ? pass.hooks.blocks->attention(layer, attend) : attend();
    at::Tensor image = gated(in.image, mi[2], a.image);
    if (b.dual()) image = gated(image, mi[8], second_attention(b, mi, in.image, alone, layer));
    image = after_attention(b.image, mi, image);
    if (b.last()) return {image, in.text};
    return {image, after_attention(b.text, mt, gated(in.text, mt[2], a.text))};
  }

  BlockStreams run(const BlockStreams& in, const at::Tensor& temb, const JointPass& pass,
                   const JointPass& alone) const {
    BlockCache* cache = pass.hooks.blocks;
    if (cache) {
      const auto modulated_image = [&] {
        const auto m = cut(blocks_.front().image.modulation(temb), blocks_.front().dual() ? 9 : 6);
        return modulated(in.image, m[0], m[1]);
      };
      if (const auto instead = cache->before_blocks(in, modulated_image)) return *instead;
    }
    BlockStreams x = in, first;
    for (std::int64_t i = 0; i < info_.layers; ++i) {
      x = through(i, x, temb, pass, alone);
      if (i == 0 && cache) {
        first = x;
        if (const auto instead = cache->after_first_block(in, x)) return *instead;
      }
    }
    if (cache) cache->after_blocks(in, first, x);
    return x;
  }

  json config_;
  DenoiserInfo info_;
  std::int64_t width_, side_ = 0;
  WeightList list_;
  Linear patch_, text_;
  at::Tensor positions_;  // [1, side_ * side_, D]
  TimeText time_;
  std::vector<Block> blocks_;
  FinalLayer last_;
};

const DenoiserLayouts::Entry registered("SD3Transformer2DModel",
                                        [](const json& c, const DitWeights& w) { return std::make_unique<Sd3>(c, w); });

}  // namespace
}  // namespace trireme

// HunyuanVideo (Kong et al., arXiv 2412.03603) in diffusers' layout, HunyuanVideoTransformer3DModel: FLUX's blocks over
// the tokens of a video, image first in the joint sequence, text refined by a small transformer and not rotated.
#include "comm/error.h"
#include "framework/models/dit/mm_dit_blocks.h"

#include <cmath>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using namespace dit;
using nlohmann::json;

DenoiserInfo info_of(const json& c) {
  DenoiserInfo i;
  i.layout = "hunyuan_video";
  i.text_first = false;
  i.patch = config_count(c, "patch_size", 2);
  i.patch_frames = config_count(c, "patch_size_t", 1);
  const std::int64_t in = config_count(c, "in_channels", 16);
  i.channels = config_count(c, "out_channels", in);
  i.image_channels = in - i.channels;
  if (i.image_channels < 0)
    throw DataError("config.json", "out_channels is above in_channels", "take the file as diffusers wrote it");
  i.heads = config_count(c, "num_attention_heads", 24);
  i.head_dim = config_count(c, "attention_head_dim", 128);
  i.layers = config_count(c, "num_layers", 20) + config_count(c, "num_single_layers", 40);
  i.rope_axes = config_axes(c.value("rope_axes_dim", json::array({16, 56, 56})), i.head_dim);
  const auto theta = c.find("rope_theta");
  i.theta = theta != c.end() && theta->is_number() ? theta->get<double>() : 256;
  if (!(i.theta > 1 && i.theta < 1e12))
    throw DataError("config.json", "rope_theta is no number above 1", "take the file as diffusers wrote it");
  i.text_width = config_count(c, "text_embed_dim", 4096);
  i.pooled_width = config_count(c, "pooled_projection_dim", 768);
  i.distilled_guidance = c.value("guidance_embeds", json(true)) == json(true);
  const json picture = c.value("image_condition_type", json());
  if (!picture.is_null() && picture != "latent_concat")
    throw DataError("config.json", "image_condition_type is not latent_concat", "such models are not built here");
  const json own = c.value("trireme", json::object());
  i.base_side = config_count(own, "base_side", 60);  // 720 x 1280 pixels: 45 x 80
  i.base_text = config_count(own, "base_text", 256);
  i.latent_factor = config_count(own, "latent_factor", 8);
  return i;
}

struct LayerNorm {
  at::Tensor weight, bias;
  at::Tensor operator()(const at::Tensor& x) const { return at::layer_norm(x, weight.sizes(), weight, bias, 1e-6); }
};

// The text's own transformer: its blocks are gated by the time and the mean of the text, without shift and scale.
struct TextRefiner {
  struct Block {
    LayerNorm before_attention, before_mlp;
    StackedLinear qkv;
    Linear out, up, down, gates;
  };
  Embedder time, mean;
  Linear in;
  std::vector<Block> blocks;

  at::Tensor operator()(const at::Tensor& text, const at::Tensor& t1000, const DenoiserInfo& info) const {
    const at::Tensor temb = at::silu(time(sinusoid(t1000, 256)) + mean(text.mean(1)));
    at::Tensor x = in(text);
    for (const Block& b : blocks) {
      const auto gate = cut(b.gates(temb), 2);
      const auto h =
          b.qkv(b.before_attention(x)).unflatten(-1, {3, info.heads, info.head_dim}).permute({2, 0, 3, 1, 4});
      const at::Tensor a = nn::joint_attention(h[0], h[1], h[2], 0, 0, {1 / std::sqrt(double(info.head_dim))});
      x = gated(x, gate[0], b.out(a.transpose(1, 2).flatten(2)));
      x = gated(x, gate[1], b.down(at::silu(b.up(b.before_mlp(x)))));
    }
    return x;
  }
};

TextRefiner text_refiner(WeightList& w, std::int64_t layers, std::int64_t text, std::int64_t width) {
  using Kind = DitWeight::Kind;
  const std::string at = "context_embedder.";
  TextRefiner r;
  r.time = embedder(w, at + "time_text_embed.timestep_embedder", 256, width);
  r.mean = embedder(w, at + "time_text_embed.text_embedder", text, width);
  r.in = w.linear(at + "proj_in", width, text);
  const auto norm = [&](const std::string& name) -> LayerNorm {
    const at::Tensor weight = w.norm(name, width);
    return {weight, w.one(name + ".bias", {width}, Kind::zero)};
  };
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string block = at + "token_refiner.refiner_blocks." + std::to_string(i) + ".", attn = block + "attn.";
    TextRefiner::Block b;
    b.before_attention = norm(block + "norm1");
    b.qkv = w.stacked({{attn + "to_q", width}, {attn + "to_k", width}, {attn + "to_v", width}}, width);
    b.out = w.linear(attn + "to_out.0", width, width);
    b.before_mlp = norm(block + "norm2");
    b.up = w.linear(block + "ff.net.0.proj", 4 * width, width);
    b.down = w.linear(block + "ff.net.2", width, 4 * width);
    b.gates = w.linear(block + "norm_out.linear", 2 * width, width, Kind::gate);
    r.blocks.push_back(b);
  }
  return r;
}

class HunyuanVideo : public Denoiser {
 public:
  HunyuanVideo(const json& config, const DitWeights& source) : config_(config), info_(info_of(config)), list_(source) {
    using Kind = DitWeight::Kind;
    const std::int64_t width = info_.heads * info_.head_dim, in = info_.channels + info_.image_channels;
    const std::int64_t area = info_.patch_frames * info_.patch * info_.patch;
    patch_.weight = list_.one("x_embedder.proj.weight", {width, in, info_.patch_frames, info_.patch, info_.patch},
                              Kind::matrix, 1 / std::sqrt(double(in * area)));
    patch_.bias = list_.one("x_embedder.proj.bias", {width}, Kind::zero);
    text_ = text_refiner(list_, config_count(config, "num_refiner_layers", 2), info_.text_width, width);
    time_ = time_text(list_, info_);
    const json said = config.value("mlp_ratio", json(4.0));
    const double ratio = said.is_number() ? said.get<double>() : 0;
    if (!(ratio >= 0.25 && ratio <= 64))
      throw DataError("config.json", "mlp_ratio is no number from 0.25 to 64", "take the file as diffusers wrote it");
    const std::int64_t doubles = config_count(config, "num_layers", 20), inner = std::int64_t(ratio * double(width));
    for (std::int64_t i = 0; i < doubles; ++i)
      doubles_.push_back(double_block(list_, "transformer_blocks." + std::to_string(i), info_, inner));
    for (std::int64_t i = 0; i < info_.layers - doubles; ++i)
      singles_.push_back(single_block(list_, "single_transformer_blocks." + std::to_string(i), info_, inner));
    last_ = final_layer(list_, width, info_.channels * area);
    modulations_.emplace(doubles_, singles_, last_);
  }

  const DenoiserInfo& info() const override { return info_; }
  const json& config() const override { return config_; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return list_.all(); }

  RopeTables rope(const Grid& grid, std::int64_t, const Offsets& offsets) const override {
    return {{}, rope_table(grid, offsets, info_.rope_axes, info_.theta, patch_.weight.device())};
  }

  at::Tensor modulations(const at::Tensor& t, const Conditioning& c) override {
    return modulations_->of_levels(time_, t, c);
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks& hooks) override {
    const Grid grid = checked_inputs(info_, x, t, c);
    const JointPass pass(info_, hooks, grid, c.text.size(1), hooks.rope ? *hooks.rope : tables_.of(*this, grid, 0),
                         x.size(0));
    const Modulation modulation = modulations_->of(time_, t, c);
    const at::Tensor latent = info_.image_channels ? at::cat({x, c.image}, 1) : x;
    const at::Tensor tokens =
        at::linear(pass.take(patchify(latent, info_.patch, info_.patch_frames)), patch_.weight.flatten(1), patch_.bias);
    const BlockStreams in{tokens, text_(c.text, 1000 * t, info_)};
    const at::Tensor out = last_.forward(run_blocks(doubles_, singles_, in, modulation, pass), modulation);
    return unpatchify(pass.give(out), x.sizes(), info_.patch, info_.patch_frames, false);
  }

 private:
  json config_;
  DenoiserInfo info_;
  WeightList list_;
  Linear patch_;
  TextRefiner text_;
  TimeText time_;
  std::vector<DoubleBlock> doubles_;
  std::vector<SingleBlock> singles_;
  FinalLayer last_;
  std::optional<ModulationRow> modulations_;
  OwnTables tables_;
};

const DenoiserLayouts::Entry registered("HunyuanVideoTransformer3DModel", [](const json& c, const DitWeights& w) {
  return std::make_unique<HunyuanVideo>(c, w);
});

}  // namespace
}  // namespace trireme

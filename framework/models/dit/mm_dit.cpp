// FLUX (Black Forest Labs, 2024) in diffusers' layout, FluxTransformer2DModel: pictures, text first in the joint
// sequence.
#include "comm/error.h"
#include "framework/models/dit/mm_dit_blocks.h"

#include <optional>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using namespace dit;
using nlohmann::json;

DenoiserInfo info_of(const json& c) {
  DenoiserInfo i;
  i.layout = "flux";
  const json own = c.value("trireme", json::object());
  if (!own.is_object())
    throw DataError("config.json", "trireme.json is no object", "take the folder as it was exported");
  i.patch = config_count(own, "patch", 2);
  const std::int64_t in = config_count(c, "in_channels", 64), patch = i.patch * i.patch;
  if (in % patch)
    throw DataError("config.json", "in_channels is no multiple of " + std::to_string(patch), "the pixels of a token");
  i.channels = in / patch;
  if (config_count(c, "out_channels", in) != in)
    throw DataError("config.json", "out_channels is not in_channels", "such models are not sampled here");
  i.heads = config_count(c, "num_attention_heads", 24);
  i.head_dim = config_count(c, "attention_head_dim", 128);
  i.layers = config_count(c, "num_layers", 19) + config_count(c, "num_single_layers", 38);
  i.rope_axes = config_axes(c.value("axes_dims_rope", json::array({16, 56, 56})), i.head_dim);
  i.text_width = config_count(c, "joint_attention_dim", 4096);
  i.pooled_width = config_count(c, "pooled_projection_dim", 768);
  const auto guidance = c.find("guidance_embeds");
  i.distilled_guidance = guidance != c.end() && guidance->is_boolean() && guidance->get<bool>();
  i.base_side = config_count(own, "base_side", 64);
  i.base_text = config_count(own, "base_text", 512);
  i.latent_factor = config_count(own, "latent_factor", 8);
  return i;
}

class Flux : public Denoiser {
 public:
  Flux(const json& config, const DitWeights& source) : config_(config), info_(info_of(config)), list_(source) {
    const std::int64_t width = info_.heads * info_.head_dim, in = info_.channels * info_.patch * info_.patch;
    image_ = list_.linear("x_embedder", width, in);
    text_ = list_.linear("context_embedder", width, info_.text_width);
    time_ = time_text(list_, info_);
    const std::int64_t doubles = config_count(config, "num_layers", 19);
    for (std::int64_t i = 0; i < doubles; ++i)
      doubles_.push_back(double_block(list_, "transformer_blocks." + std::to_string(i), info_, 4 * width));
    for (std::int64_t i = 0; i < info_.layers - doubles; ++i)
      singles_.push_back(single_block(list_, "single_transformer_blocks." + std::to_string(i), info_, 4 * width));
    last_ = final_layer(list_, width, in);
    modulations_.emplace(doubles_, singles_, last_);
  }

  const DenoiserInfo& info() const override { return info_; }
  const json& config() const override { return config_; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return list_.all(); }

  RopeTables rope(const Grid& grid, std::int64_t text_tokens, const Offsets& offsets) const override {
    const at::Device device = image_.weight.device();
    return {rope_origin(text_tokens, info_.head_dim / 2, device),
            rope_table(grid, offsets, info_.rope_axes, info_.theta, device)};
  }

  at::Tensor modulations(const at::Tensor& t, const Conditioning& c) override {
    return modulations_->of_levels(time_, t, c);
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks& hooks) override {
    const Grid grid = checked_inputs(info_, x, t, c);
    const std::int64_t text = c.text.size(1);
    const JointPass pass(info_, hooks, grid, text, hooks.rope ? *hooks.rope : tables_.of(*this, grid, text), x.size(0));
    const Modulation modulation = modulations_->of(time_, t, c);
    const BlockStreams in{image_(pass.take(patchify(x, info_.patch, 1))), text_(c.text)};
    const at::Tensor out = last_.forward(run_blocks(doubles_, singles_, in, modulation, pass), modulation);
    return unpatchify(pass.give(out), x.sizes(), info_.patch, 1, false);
  }

 private:
  json config_;
  DenoiserInfo info_;
  WeightList list_;
  Linear image_, text_;
  TimeText time_;
  std::vector<DoubleBlock> doubles_;
  std::vector<SingleBlock> singles_;
  FinalLayer last_;
  std::optional<ModulationRow> modulations_;
  OwnTables tables_;
};

const DenoiserLayouts::Entry registered("FluxTransformer2DModel", [](const json& c, const DitWeights& w) {
  return std::make_unique<Flux>(c, w);
});

}  // namespace
}  // namespace trireme

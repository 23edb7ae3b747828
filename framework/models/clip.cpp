#include "framework/models/clip.h"

#include <algorithm>
#include <cmath>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-5;

at::Tensor unit_length(const at::Tensor& x) {
  const at::Tensor y = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  return y / at::linalg_vector_norm(y, 2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

}  // namespace

Clip::Clip(const ClipConfig& c, double init_log_scale, Parameters& params) : config_(c) {
  const auto tw = c.text_width;
  if (c.resnet())
    resnet_.emplace(c, params);
  else
    vit_.emplace(c, params);
  tokens_ = params.normal("token_embedding.weight", {c.vocab, tw}, 0.02);
  text_position_ = params.normal("positional_embedding", {c.context, tw}, 0.01);
  text_shape_ = {c.text_layers,
                 tw,
                 c.text_heads,
                 c.text_mlp(),
                 c.quick_gelu ? kernels::Activation::quick_gelu : kernels::Activation::gelu,
                 true,
                 c.checkpointing};
  text_ = Transformer(text_shape_, "transformer.", params);
  ln_final_w_ = params.constant("ln_final.weight", {tw}, 1);
  ln_final_b_ = params.constant("ln_final.bias", {tw}, 0);
  text_projection_ = params.normal("text_projection", {tw, c.embed_dim}, std::pow(double(tw), -0.5));
  log_scale_ = params.constant("logit_scale", {}, init_log_scale, "temperature");
  if (c.logit_bias) bias_ = params.constant("logit_bias", {}, -10, "no_decay");
}

at::Tensor Clip::encode_image(const at::Tensor& pixels, bool fused, const Training* training) const {
  return unit_length(resnet_ ? resnet_->features(pixels, config_.lock_image ? nullptr : training)
                             : vit_->features(pixels, fused, training));
}

at::Tensor Clip::encode_text(const at::Tensor& ids, std::span<const std::int64_t> end, bool fused) const {
  // Positions after the longest text of the batch cannot reach any EOT.
  const std::int64_t t = *std::max_element(end.begin(), end.end()) + 1, w = config_.text_width;
  const at::Tensor x = at::embedding(tokens_, ids.narrow(1, 0, t)) + text_position_.narrow(0, 0, t);
  const at::Tensor y = at::layer_norm(text_.pooled(x, end, fused), {w}, ln_final_w_, ln_final_b_, eps);
  return unit_length(at::matmul(y, text_projection_));
}

void Clip::step_statistics(const at::Tensor& skip) const {
  if (resnet_) resnet_->step_statistics(skip);
}

double Clip::training_flops_per_pair(double text_tokens) const {
  return 3 * ((resnet_ ? resnet_->flops() : vit_->flops()) + text_shape_.flops(text_tokens) +
              2 * double(text_projection_.numel()));
}

void lock_towers(const ClipConfig& c, std::vector<Param>& params) {
  // A layer's place from the front: embeddings 0, block i i + 1, the last norm with the last block, the projection.
  const auto place = [](const std::string& name, std::int64_t layers) -> std::int64_t {
    if (const auto at = name.find("resblocks."); at != name.npos) return std::stoll(name.substr(at + 10)) + 1;
    if (name.find("ln_post") != name.npos || name.find("ln_final") != name.npos) return layers;
    return name == "visual.proj" || name == "text_projection" ? layers + 1 : 0;
  };
  for (auto& p : params) {
    const bool image = p.name.starts_with("visual.");
    if (p.name.starts_with("logit_") || p.group == "buffer" || !(image ? c.lock_image : c.lock_text)) continue;
    const std::int64_t layers = image ? c.vision_layers : c.text_layers,
                       unlocked = image ? c.lock_image_unlocked_groups : c.lock_text_unlocked_groups;
    if (place(p.name, layers) < layers + 2 - unlocked) p.group = "frozen";
  }
}

}  // namespace trireme::nn

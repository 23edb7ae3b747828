// CLIP: an image tower (ViT or ResNet) and a causal text transformer into one space, as OpenCLIP builds them (names and
// layouts of parameters and buffers included; class token, EOT pooling, pre-LN).
#pragma once
#include "framework/models/resnet.h"
#include "framework/models/vit.h"

#include <optional>

namespace trireme::nn {

class Clip {
 public:
  // `vocab` of the tokenizer in use may be below config.vocab.
  Clip(const ClipConfig& config, double init_log_scale, Parameters& params);

  // pixels [b, 3, s, s] of the parameters' type, normalised -> [b, d], unit length, f32 or f64. Without `training` it
  // evaluates: no patch is dropped, batch norms use their running statistics, as they do in a locked tower.
  at::Tensor encode_image(const at::Tensor& pixels, bool fused, const Training* training = nullptr) const;
  // ids [b, context] i64; end [b]: position of EOT -> [b, d], unit length.
  at::Tensor encode_text(const at::Tensor& ids, std::span<const std::int64_t> end, bool fused) const;
  // After a training step: running statistics move, unless `skip` (f32 scalar) is 1.
  void step_statistics(const at::Tensor& skip) const;
  const ClipConfig& config() const { return config_; }
  std::int64_t embed_dim() const { return config_.embed_dim; }
  at::Tensor log_scale() const { return log_scale_; }  // scalar, t = log(1 / tau)
  at::Tensor bias() const { return bias_; }            // scalar of SigLIP's logits; undefined without config.logit_bias

  // Multiply-adds x 2 of one pair's forward pass without padding, times 3 for training: the model's own work.
  double training_flops_per_pair(double text_tokens) const;

 private:
  ClipConfig config_;
  std::optional<Vit> vit_;
  std::optional<ResNet> resnet_;
  Transformer::Shape text_shape_;
  at::Tensor tokens_, text_position_, ln_final_w_, ln_final_b_, text_projection_, log_scale_, bias_;
  Transformer text_;
};

// Puts what config.lock_image and lock_text lock into the group "frozen", by OpenCLIP's groups of layers.
void lock_towers(const ClipConfig& config, std::vector<Param>& params);

}  // namespace trireme::nn

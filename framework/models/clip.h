// CLIP: a ViT image tower and a causal text transformer into one space, as OpenCLIP builds them (parameter names and
// layouts included; class token, EOT pooling, pre-LN).
#pragma once
#include "framework/config/config.h"
#include "framework/nn/transformer.h"

namespace trireme::nn {

struct ClipConfig {
  std::int64_t embed_dim = 192, image_size = 64, patch_size = 8, vision_width = 192, vision_layers = 6,
               vision_heads = 3;
  std::int64_t context = 32, vocab = 4096, text_width = 192, text_layers = 3, text_heads = 3;
  bool quick_gelu = false;
  void fields(Fields& f);
};

class Clip {
 public:
  // `vocab` of the tokenizer in use may be below config.vocab.
  Clip(const ClipConfig& config, double init_log_scale, Parameters& params);

  // pixels [b, 3, s, s] of the parameters' type, normalised -> [b, d], unit length, f32 or f64.
  at::Tensor encode_image(const at::Tensor& pixels, bool fused) const;
  // ids [b, context] i64; end [b]: position of EOT -> [b, d], unit length.
  at::Tensor encode_text(const at::Tensor& ids, std::span<const std::int64_t> end, bool fused) const;
  std::int64_t embed_dim() const { return config_.embed_dim; }
  at::Tensor log_scale() const { return log_scale_; }  // scalar, t = log(1 / tau)

  // Multiply-adds x 2 of one pair's forward pass without padding, times 3 for training: the model's own work.
  double training_flops_per_pair(double text_tokens) const;

 private:
  ClipConfig config_;
  at::Tensor patch_, class_token_, image_position_, ln_pre_w_, ln_pre_b_, ln_post_w_, ln_post_b_, image_projection_;
  at::Tensor tokens_, text_position_, ln_final_w_, ln_final_b_, text_projection_, log_scale_;
  Transformer vision_, text_;
};

}  // namespace trireme::nn

// The ViT of CLIP: class token, learnt positions, pre-LN blocks, pooled at the class token.
#pragma once
#include "framework/models/clip_config.h"
#include "framework/nn/training.h"
#include "framework/nn/transformer.h"

namespace trireme::nn {

class Vit {
 public:
  // Adds its parameters as `visual....`.
  Vit(const ClipConfig& config, Parameters& params);

  // pixels [b, 3, s, s] of the parameters' type -> [b, embed_dim]. In training with patch dropout (Li et al.,
  // arXiv 2212.00794) a row sees the share of its patches that (seed, epoch, sample) chooses.
  at::Tensor features(const at::Tensor& pixels, bool fused, const Training* training) const;
  double flops() const;  // of one image's forward, multiply-adds x 2

 private:
  std::int64_t patches() const { return grid_ * grid_; }
  std::int64_t kept() const;  // patches a row sees in training

  std::int64_t patch_size_ = 1, grid_ = 1;
  double dropout_ = 0;
  Transformer::Shape shape_;
  at::Tensor patch_, class_token_, position_, ln_pre_w_, ln_pre_b_, ln_post_w_, ln_post_b_, projection_;
  Transformer blocks_;
};

}  // namespace trireme::nn

// A CLIP model's shape and how it is trained: the keys of `model:`.
#pragma once
#include "framework/config/config.h"

#include <string>
#include <vector>

namespace trireme::nn {

struct ClipConfig {
  std::string name = "custom";
  std::int64_t embed_dim = 192, image_size = 64, patch_size = 8, vision_width = 192, vision_layers = 6,
               vision_heads = 3;
  std::vector<std::int64_t> resnet_layers;  // not empty: a ModifiedResNet of vision_width, no ViT
  std::int64_t context = 32, vocab = 4096, text_width = 192, text_layers = 3, text_heads = 3;
  double vision_mlp_ratio = 4, text_mlp_ratio = 4;
  bool quick_gelu = false;
  bool logit_bias = false;  // SigLIP's; no key: the loss says it
  // Of training alone.
  double patch_dropout = 0;
  bool checkpointing = false, sync_bn = false;
  bool lock_image = false, lock_text = false;
  std::int64_t lock_image_unlocked_groups = 0, lock_text_unlocked_groups = 0;

  void fields(Fields& f);
  bool resnet() const { return !resnet_layers.empty(); }
  std::int64_t vision_mlp() const { return std::int64_t(double(vision_width) * vision_mlp_ratio); }
  std::int64_t text_mlp() const { return std::int64_t(double(text_width) * text_mlp_ratio); }
};

}  // namespace trireme::nn

// What Wan's blocks are told: time, text, and tokens of a picture.
#pragma once
#include "framework/models/dit/parts.h"

namespace trireme::dit {

struct WanConditions {
  struct Embedded {
    at::Tensor time;        // f32 [B, D]: for the head
    at::Tensor modulation;  // f32 [B, 6, D]: for every block, beside its table
    at::Tensor text;        // [B, M, D]
    at::Tensor picture;     // [B, I, D], or undefined
  };
  // UsageError: picture tokens without a place for them, or the other way round.
  Embedded operator()(const at::Tensor& t, const Conditioning& c) const;
  std::int64_t picture_width() const { return picture_key_width; }

  std::int64_t frequencies = 256;
  Embedder time;
  Linear projection;  // [6 D, D]
  Mlp text;
  // Of picture tokens: LayerNorm, GELU between two linears, LayerNorm.
  at::Tensor before, before_bias, after, after_bias;
  Linear picture_up, picture_down;
  std::int64_t picture_key_width = 0;  // 0: no picture tokens
};

// "condition_embedder.": time_embedder, time_proj, text_embedder and, where config.json has image_dim, image_embedder.
WanConditions wan_conditions(WeightList& w, const nlohmann::json& config, std::int64_t width, std::int64_t text_width);

}  // namespace trireme::dit

// FLUX's transformer for studies of speed: weights are random.
#pragma once
#include <cstdint>

#include <nlohmann/json.hpp>

namespace trireme::bench {

constexpr std::int64_t flux_text_tokens = 256;

// 24 heads of 128; 4 + 8 blocks, or all 19 + 38. `gpu` false: 1 + 2 of 4 heads, for a host.
inline nlohmann::json flux_shape(bool whole, bool gpu) {
  nlohmann::json c{{"_class_name", "FluxTransformer2DModel"},
                   {"in_channels", 64},
                   {"guidance_embeds", false},
                   {"num_layers", whole ? 19 : 4},
                   {"num_single_layers", whole ? 38 : 8},
                   {"attention_head_dim", 128},
                   {"num_attention_heads", 24},
                   {"joint_attention_dim", 4096},
                   {"pooled_projection_dim", 768},
                   {"axes_dims_rope", {16, 56, 56}}};
  if (!gpu) c.update({{"num_layers", 1}, {"num_single_layers", 2}, {"num_attention_heads", 4}});
  return c;
}

}  // namespace trireme::bench

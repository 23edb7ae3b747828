#include "framework/models/clip.h"

#include <cmath>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-5;

kernels::Activation activation(const ClipConfig& c) {
  return c.quick_gelu ? kernels::Activation::quick_gelu : kernels::Activation::gelu;
}

at::Tensor unit_length(const at::Tensor& x) {
  const at::Tensor y = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  return y / at::linalg_vector_norm(y, 2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

}  // namespace

void ClipConfig::fields(Fields& f) {
  f("embed_dim", embed_dim, "width of the shared space", {.min = 1, .max = 65536});
  f("image_size", image_size, "pixels a side", {.min = 8, .max = 4096});
  f("patch_size", patch_size, "pixels of a patch's side", {.min = 1, .max = 4096});
  f("vision_width", vision_width, "width of the image tower", {.min = 1, .max = 65536});
  f("vision_layers", vision_layers, "blocks of the image tower", {.min = 1, .max = 1000});
  f("vision_heads", vision_heads, "attention heads of the image tower", {.min = 1, .max = 1024});
  f("context", context, "longest text in tokens, marks included", {.min = 2, .max = 4096});
  f("vocab", vocab, "rows of the token table", {.min = 514, .max = 1000000});
  f("text_width", text_width, "width of the text tower", {.min = 1, .max = 65536});
  f("text_layers", text_layers, "blocks of the text tower", {.min = 1, .max = 1000});
  f("text_heads", text_heads, "attention heads of the text tower", {.min = 1, .max = 1024});
  f("quick_gelu", quick_gelu, "x * sigmoid(1.702 x), as OpenAI's weights need, in place of gelu");
  f.require(image_size % patch_size == 0, "patch_size", "does not divide image_size", "choose a divisor of it");
  f.require(vision_width % vision_heads == 0, "vision_heads", "does not divide vision_width", "choose a divisor of it");
  f.require(text_width % text_heads == 0, "text_heads", "does not divide text_width", "choose a divisor of it");
}

Clip::Clip(const ClipConfig& c, double init_log_scale, Parameters& params) : config_(c) {
  const auto w = c.vision_width, tw = c.text_width, p = c.patch_size;
  const auto grid = c.image_size / p;
  const double scale = std::pow(double(w), -0.5);
  class_token_ = params.normal("visual.class_embedding", {w}, scale, "no_decay");
  image_position_ = params.normal("visual.positional_embedding", {grid * grid + 1, w}, scale);
  image_projection_ = params.normal("visual.proj", {w, c.embed_dim}, scale);
  patch_ = params.uniform("visual.conv1.weight", {w, 3, p, p}, 1 / std::sqrt(3.0 * p * p));
  ln_pre_w_ = params.constant("visual.ln_pre.weight", {w}, 1);
  ln_pre_b_ = params.constant("visual.ln_pre.bias", {w}, 0);
  vision_ = Transformer({c.vision_layers, w, c.vision_heads, activation(c), false}, "visual.transformer.", params);
  ln_post_w_ = params.constant("visual.ln_post.weight", {w}, 1);
  ln_post_b_ = params.constant("visual.ln_post.bias", {w}, 0);
  tokens_ = params.normal("token_embedding.weight", {c.vocab, tw}, 0.02);
  text_position_ = params.normal("positional_embedding", {c.context, tw}, 0.01);
  text_ = Transformer({c.text_layers, tw, c.text_heads, activation(c), true}, "transformer.", params);
  ln_final_w_ = params.constant("ln_final.weight", {tw}, 1);
  ln_final_b_ = params.constant("ln_final.bias", {tw}, 0);
  text_projection_ = params.normal("text_projection", {tw, c.embed_dim}, std::pow(double(tw), -0.5));
  log_scale_ = params.constant("logit_scale", {}, init_log_scale, "temperature");
}

at::Tensor Clip::encode_image(const at::Tensor& pixels, bool fused) const {
  const auto b = pixels.size(0), w = config_.vision_width, p = config_.patch_size, g = config_.image_size / p;
  // A convolution whose stride is its kernel is one GEMM over patches.
  const at::Tensor patches =
      pixels.view({b, 3, g, p, g, p}).permute({0, 2, 4, 1, 3, 5}).reshape({b * g * g, 3 * p * p});
  const at::Tensor grid = at::matmul(patches, patch_.view({w, 3 * p * p}).t()).view({b, g * g, w});
  const at::Tensor first = class_token_.to(grid.scalar_type()).expand({b, 1, w});
  at::Tensor x = at::cat({first, grid}, 1) + image_position_;
  x = at::layer_norm(x, {w}, ln_pre_w_, ln_pre_b_, eps);
  const std::vector<std::int64_t> pool(b, 0);
  const at::Tensor y = at::layer_norm(vision_.pooled(x, pool, fused), {w}, ln_post_w_, ln_post_b_, eps);
  return unit_length(at::matmul(y, image_projection_));
}

at::Tensor Clip::encode_text(const at::Tensor& ids, std::span<const std::int64_t> end, bool fused) const {
  // Positions after the longest text of the batch cannot reach any EOT.
  const std::int64_t t = *std::max_element(end.begin(), end.end()) + 1, w = config_.text_width;
  const at::Tensor x = at::embedding(tokens_, ids.narrow(1, 0, t)) + text_position_.narrow(0, 0, t);
  const at::Tensor y = at::layer_norm(text_.pooled(x, end, fused), {w}, ln_final_w_, ln_final_b_, eps);
  return unit_length(at::matmul(y, text_projection_));
}

double Clip::training_flops_per_pair(double text_tokens) const {
  const auto tower = [](double layers, double width, double tokens) {
    return layers * (24 * width * width * tokens + 4 * width * tokens * tokens);
  };
  const double g = double(config_.image_size / config_.patch_size), w = double(config_.vision_width);
  const double tw = double(config_.text_width), d = double(config_.embed_dim);
  const double patches = 2 * g * g * w * 3 * double(config_.patch_size * config_.patch_size);
  return 3 * (patches + tower(double(config_.vision_layers), w, g * g + 1) +
              tower(double(config_.text_layers), tw, text_tokens) + 2 * d * (w + tw));
}

}  // namespace trireme::nn

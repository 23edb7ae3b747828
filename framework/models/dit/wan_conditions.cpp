#include "framework/models/dit/wan_conditions.h"

#include "comm/error.h"

#include <ATen/ATen.h>

namespace trireme::dit {
namespace {

at::Tensor wide_linear(const Linear& l, const at::Tensor& x) {
  return at::linear(x, l.weight.to(at::kFloat), l.bias.to(at::kFloat));
}

at::Tensor wide_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::layer_norm(x.to(at::kFloat), weight.sizes(), weight.to(at::kFloat), bias.to(at::kFloat), 1e-5)
      .to(x.scalar_type());
}

}  // namespace

WanConditions::Embedded WanConditions::operator()(const at::Tensor& t, const Conditioning& c) const {
  if (c.image_tokens.defined() != (picture_key_width > 0))
    throw UsageError("denoiser", picture_key_width ? "wants tokens of a picture" : "takes no tokens of a picture",
                     picture_key_width ? "give image_tokens [B, I, width]" : "leave image_tokens out");
  if (picture_key_width) {
    const std::int64_t tokens = c.image_tokens.dim() == 3 ? c.image_tokens.size(1) : 1;
    expect_shape("image_tokens", c.image_tokens, {t.size(0), tokens, before.size(0)});
  }
  Embedded e;
  // The time's own MLP runs in f32, as in the released models; all that follows in the model's type.
  const at::Tensor hidden = at::silu(wide_linear(time.first, sinusoid(1000 * t, frequencies)));
  const at::Tensor embedded = wide_linear(time.second, hidden).to(c.text.scalar_type());
  e.time = embedded.to(at::kFloat);
  e.modulation = projection(at::silu(embedded)).unflatten(1, {6, -1}).to(at::kFloat);
  e.text = text(c.text);
  if (picture_key_width)
    e.picture = wide_norm(picture_down(at::gelu(picture_up(wide_norm(c.image_tokens, before, before_bias)))), after,
                          after_bias);
  return e;
}

WanConditions wan_conditions(WeightList& w, const nlohmann::json& config, std::int64_t width, std::int64_t text_width) {
  using Kind = DitWeight::Kind;
  const std::string at = "condition_embedder.";
  WanConditions c;
  c.frequencies = config_count(config, "freq_dim", 256);
  if (c.frequencies % 2) throw DataError("config.json", "freq_dim is odd", "take the file as diffusers wrote it");
  c.time = embedder(w, at + "time_embedder", c.frequencies, width);
  c.projection = w.linear(at + "time_proj", 6 * width, width, Kind::gate);
  c.text.up = w.linear(at + "text_embedder.linear_1", width, text_width);
  c.text.down = w.linear(at + "text_embedder.linear_2", width, width);
  const auto null_or_missing = [&](const char* key) { return !config.contains(key) || config[key].is_null(); };
  if (!null_or_missing("pos_embed_seq_len"))
    throw DataError("config.json", "pos_embed_seq_len is set", "models of a first and a last frame are not built here");
  if (null_or_missing("image_dim")) return c;
  const std::int64_t picture = config_count(config, "image_dim", 1);
  c.picture_key_width = config_count(config, "added_kv_proj_dim", width);
  const std::string image = at + "image_embedder.";
  c.before = w.norm(image + "norm1", picture);
  c.before_bias = w.one(image + "norm1.bias", {picture}, Kind::zero);
  c.picture_up = w.linear(image + "ff.net.0.proj", picture, picture);
  c.picture_down = w.linear(image + "ff.net.2", width, picture);
  c.after = w.norm(image + "norm2", width);
  c.after_bias = w.one(image + "norm2.bias", {width}, Kind::zero);
  return c;
}

}  // namespace trireme::dit

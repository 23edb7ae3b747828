#include "framework/models/vit.h"

#include "data/rng.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-5;

// [b, kept] i64 on the host: of each row, ascending, the patches it keeps.
at::Tensor kept_patches(const Training& t, std::int64_t patches, std::int64_t kept) {
  at::Tensor chosen = at::empty({std::int64_t(t.ids.size()), kept}, at::kLong);
  std::int64_t* row = chosen.mutable_data_ptr<std::int64_t>();
  std::vector<std::int64_t> order(patches);
  for (const auto id : t.ids) {
    Rng rng(t.seed, "patch dropout", std::uint64_t(t.epoch), std::uint64_t(id));
    std::iota(order.begin(), order.end(), 0);
    for (std::int64_t i = 0; i < kept; ++i) std::swap(order[i], order[i + rng.below(patches - i)]);
    std::sort(order.begin(), order.begin() + kept);
    row = std::copy_n(order.begin(), kept, row);
  }
  return chosen;
}

}  // namespace

Vit::Vit(const ClipConfig& c, Parameters& params)
    : patch_size_(c.patch_size), grid_(c.image_size / c.patch_size), dropout_(c.patch_dropout) {
  const auto w = c.vision_width, p = c.patch_size;
  const double scale = std::pow(double(w), -0.5);
  class_token_ = params.normal("visual.class_embedding", {w}, scale, "no_decay");
  position_ = params.normal("visual.positional_embedding", {patches() + 1, w}, scale);
  projection_ = params.normal("visual.proj", {w, c.embed_dim}, scale);
  patch_ = params.uniform("visual.conv1.weight", {w, 3, p, p}, 1 / std::sqrt(3.0 * p * p));
  ln_pre_w_ = params.constant("visual.ln_pre.weight", {w}, 1);
  ln_pre_b_ = params.constant("visual.ln_pre.bias", {w}, 0);
  shape_ = {c.vision_layers,
            w,
            c.vision_heads,
            c.vision_mlp(),
            c.quick_gelu ? kernels::Activation::quick_gelu : kernels::Activation::gelu,
            false,
            c.checkpointing};
  blocks_ = Transformer(shape_, "visual.transformer.", params);
  ln_post_w_ = params.constant("visual.ln_post.weight", {w}, 1);
  ln_post_b_ = params.constant("visual.ln_post.bias", {w}, 0);
}

std::int64_t Vit::kept() const { return std::max<std::int64_t>(1, std::int64_t(double(patches()) * (1 - dropout_))); }

at::Tensor Vit::features(const at::Tensor& pixels, bool fused, const Training* training) const {
  const auto b = pixels.size(0), w = shape_.width, p = patch_size_, g = grid_;
  // A convolution whose stride is its kernel is one GEMM over patches.
  at::Tensor patches = pixels.view({b, 3, g, p, g, p}).permute({0, 2, 4, 1, 3, 5}).reshape({b * g * g, 3 * p * p});
  at::Tensor position = position_;
  std::int64_t n = g * g;
  if (training && dropout_ > 0) {
    n = kept();
    const at::Tensor kept = kept_patches(*training, g * g, n);
    const at::Tensor rows = kept + (at::arange(b, at::kLong) * (g * g)).unsqueeze(1);
    patches = patches.index_select(0, to_device(rows.flatten(), pixels.device()));
    const at::Tensor places = at::cat({at::zeros({b, 1}, at::kLong), kept + 1}, 1);
    position = at::embedding(position_, to_device(places, pixels.device()));
  }
  const at::Tensor grid = at::matmul(patches, patch_.view({w, 3 * p * p}).t()).view({b, n, w});
  const at::Tensor first = class_token_.to(grid.scalar_type()).expand({b, 1, w});
  at::Tensor x = at::cat({first, grid}, 1) + position;
  x = at::layer_norm(x, {w}, ln_pre_w_, ln_pre_b_, eps);
  const std::vector<std::int64_t> pool(b, 0);
  const at::Tensor y = at::layer_norm(blocks_.pooled(x, pool, fused), {w}, ln_post_w_, ln_post_b_, eps);
  return at::matmul(y, projection_);
}

double Vit::flops() const {
  const double n = double(dropout_ > 0 ? kept() : patches());
  return 2 * n * double(patch_.numel()) + shape_.flops(n + 1) + 2 * double(projection_.numel());
}

}  // namespace trireme::nn

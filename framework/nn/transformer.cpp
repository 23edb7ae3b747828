#include "framework/nn/transformer.h"

#include "framework/base/tensor.h"
#include "framework/nn/checkpoint.h"
#include "framework/nn/fused_block.h"

#include <cmath>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-5;

// The same block out of ATen operators: any device, any precision. x [b, t, w].
at::Tensor plain_block(const at::Tensor& x, const BlockParameters& p, const Transformer::Shape& s) {
  const auto b = x.size(0), t = x.size(1), w = x.size(2);
  const at::Tensor h = at::layer_norm(x, {w}, p.ln1_w, p.ln1_b, eps);
  const auto qkv =
      at::linear(h, p.qkv_w, p.qkv_b).view({b, t, 3, s.heads, w / s.heads}).permute({2, 0, 3, 1, 4}).unbind(0);
  const at::Tensor a = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], {}, 0.0, s.causal);
  const at::Tensor y = x + at::linear(a.transpose(1, 2).reshape({b, t, w}), p.out_w, p.out_b);
  const at::Tensor z = at::linear(at::layer_norm(y, {w}, p.ln2_w, p.ln2_b, eps), p.fc_w, p.fc_b);
  const at::Tensor act = s.activation == kernels::Activation::gelu ? at::gelu(z) : z * at::sigmoid(1.702 * z);
  return y + at::linear(act, p.proj_w, p.proj_b);
}

BlockParameters block_of(std::span<const at::Tensor> w) {
  return {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11]};
}

at::Tensor checkpointed_block(const at::Tensor& x, const BlockParameters& p, const Transformer::Shape& s) {
  const at::Tensor weights[] = {p.ln1_w, p.ln1_b, p.qkv_w, p.qkv_b, p.out_w,  p.out_b,
                                p.ln2_w, p.ln2_b, p.fc_w,  p.fc_b,  p.proj_w, p.proj_b};
  return checkpointed(
      [s](const at::Tensor& in, std::span<const at::Tensor> w) { return plain_block(in, block_of(w), s); }, x, weights);
}

at::Tensor host_i64(std::span<const std::int64_t> v) {
  return at::from_blob(const_cast<std::int64_t*>(v.data()), {std::int64_t(v.size())}, at::kLong).clone();
}

}  // namespace

Transformer::Transformer(const Shape& shape, const std::string& prefix, Parameters& params) : shape_(shape) {
  const auto w = shape.width;
  const double attention_std = std::pow(double(w), -0.5),
               residual_std = attention_std * std::pow(2.0 * shape.layers, -0.5);
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    const std::string n = prefix + "resblocks." + std::to_string(i) + ".";
    BlockParameters p;
    p.ln1_w = params.constant(n + "ln_1.weight", {w}, 1);
    p.ln1_b = params.constant(n + "ln_1.bias", {w}, 0);
    p.qkv_w = params.normal(n + "attn.in_proj_weight", {3 * w, w}, attention_std);
    p.qkv_b = params.constant(n + "attn.in_proj_bias", {3 * w}, 0);
    p.out_w = params.normal(n + "attn.out_proj.weight", {w, w}, residual_std);
    p.out_b = params.constant(n + "attn.out_proj.bias", {w}, 0);
    p.ln2_w = params.constant(n + "ln_2.weight", {w}, 1);
    p.ln2_b = params.constant(n + "ln_2.bias", {w}, 0);
    p.fc_w = params.normal(n + "mlp.c_fc.weight", {shape.mlp, w}, std::pow(2.0 * w, -0.5));
    p.fc_b = params.constant(n + "mlp.c_fc.bias", {shape.mlp}, 0);
    p.proj_w = params.normal(n + "mlp.c_proj.weight", {w, shape.mlp}, residual_std);
    p.proj_b = params.constant(n + "mlp.c_proj.bias", {w}, 0);
    blocks_.push_back(std::move(p));
  }
}

double Transformer::Shape::flops(double tokens) const {
  const double w = double(width);
  return double(layers) * (8 * w * w * tokens + 4 * w * double(mlp) * tokens + 4 * w * tokens * tokens);
}

at::Tensor Transformer::pooled(const at::Tensor& x, std::span<const std::int64_t> pool, bool fused) const {
  const auto b = x.size(0), t = x.size(1), w = x.size(2);
  if (!fused) {
    at::Tensor y = x;
    for (const auto& p : blocks_)
      y = shape_.checkpointing ? checkpointed_block(y, p, shape_) : plain_block(y, p, shape_);
    return y.index(
        {at::arange(b, x.options().dtype(at::kLong).requires_grad(false)), to_device(host_i64(pool), x.device())});
  }
  // Pack: a causal tower needs the rows up to the pooled one, others need all t.
  std::vector<std::int64_t> offsets{0}, rows, pooled_rows;
  bool whole = true;
  for (std::int64_t i = 0; i < b; ++i) {
    const std::int64_t n = shape_.causal ? pool[i] + 1 : t;
    whole &= n == t;
    for (std::int64_t k = 0; k < n; ++k) rows.push_back(i * t + k);
    pooled_rows.push_back(offsets.back() + pool[i]);
    offsets.push_back(offsets.back() + n);
  }
  at::Tensor y = x.reshape({b * t, w});
  if (!whole) y = y.index_select(0, host_i64(rows));
  const at::Tensor o = host_i64(offsets), last = host_i64(pooled_rows), none = at::empty({0}, at::kLong);
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    y = fused_block(y, blocks_[i], o, i + 1 == blocks_.size() ? last : none, shape_);
  return y;
}

}  // namespace trireme::nn

#include "framework/nn/transformer.h"

#include "framework/base/tensor.h"
#include "framework/nn/checkpoint.h"
#include "framework/nn/device_block.h"
#include "framework/nn/fused_block.h"

#include <cmath>

#include <ATen/autocast_mode.h>

namespace trireme::nn {
namespace {

BlockParameters block_of(std::span<const at::Tensor> w) {
  return {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11]};
}

at::Tensor checkpointed_block(const at::Tensor& x, const BlockParameters& p, const Sequences& s, const at::Tensor& pool,
                              const Transformer::Shape& shape) {
  const at::Tensor weights[] = {p.ln1_w, p.ln1_b, p.qkv_w, p.qkv_b, p.out_w,  p.out_b,
                                p.ln2_w, p.ln2_b, p.fc_w,  p.fc_b,  p.proj_w, p.proj_b};
  return checkpointed(
      [s, pool, shape](const at::Tensor& in, std::span<const at::Tensor> w) {
        return device_block(in, block_of(w), s, pool, shape);
      },
      x, weights);
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
  return fused ? on_host(x, pool) : on_operators(x, pool);
}

at::Tensor Transformer::on_host(const at::Tensor& x, std::span<const std::int64_t> pool) const {
  const auto b = x.size(0), t = x.size(1), w = x.size(2);
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

at::Tensor Transformer::on_operators(const at::Tensor& x, std::span<const std::int64_t> pool) const {
  const auto b = x.size(0), w = x.size(2);
  std::vector<std::int64_t> lengths(b, x.size(1)), pooled_rows;
  std::int64_t first = 0;
  for (std::int64_t i = 0; i < b; ++i) {
    if (shape_.causal) lengths[i] = pool[i] + 1;
    pooled_rows.push_back(first + pool[i]);
    first += lengths[i];
  }
  const Sequences s(lengths, x.device());
  const at::Tensor last = to_device(host_i64(pooled_rows), x.device());
  // The blocks run in autocast's type from end to end, what flows past them too: operators would go back to f32.
  const auto device = x.device().type();
  const auto type =
      at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  at::Tensor y = x.narrow(1, 0, s.longest).reshape({b * s.longest, w});
  if (!s.equal()) y = y.index_select(0, s.rows);
  y = y.to(type);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const at::Tensor pooled = i + 1 == blocks_.size() ? last : at::Tensor();
    y = shape_.checkpointing ? checkpointed_block(y, blocks_[i], s, pooled, shape_)
                             : device_block(y, blocks_[i], s, pooled, shape_);
  }
  return y;
}

}  // namespace trireme::nn

#include "framework/nn/device_block.h"

#include "framework/nn/linear.h"

namespace trireme::nn {
namespace {

constexpr double eps = 1e-5, quick = 1.702;

// z * sigmoid(1.702 z) = silu(1.702 z) / 1.702, which ATen has a backward kernel for.
struct QuickGelu : torch::autograd::Function<QuickGelu> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& z) {
    ctx->save_for_backward({z});
    return at::silu(z * quick).div_(quick);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list dy) {
    return {at::silu_backward(dy[0], ctx->get_saved_variables()[0] * quick)};
  }
};

// In x's type (whose statistics are f32 inside ATen's kernel), then cast.
at::Tensor norm(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, at::ScalarType type) {
  // A host sums gradients of w and b in their type, a GPU's kernel in f32 but wants one type of all.
  const auto affine = x.is_cpu() && x.scalar_type() == at::kBFloat16 ? w.scalar_type() : x.scalar_type();
  return at::layer_norm(x, {x.size(1)}, w.to(affine), b.to(affine), eps).to(type);
}

// Rows [first, first + n) of a weight that is used in parts.
at::Tensor part(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, std::int64_t first, std::int64_t n) {
  return at::linear(x, w.narrow(0, first, n).to(x.scalar_type()), b.narrow(0, first, n).to(x.scalar_type()));
}

}  // namespace

at::Tensor device_block(const at::Tensor& x, const BlockParameters& p, const Sequences& s, const at::Tensor& pool,
                        const Transformer::Shape& shape, at::ScalarType type) {
  const auto w = x.size(1);
  const at::Tensor h = norm(x, p.ln1_w, p.ln1_b, type);
  at::Tensor residual = x, mixed;
  if (pool.defined()) {
    residual = x.index_select(0, pool);
    mixed = pooled_attention(part(h.index_select(0, pool), p.qkv_w, p.qkv_b, 0, w), part(h, p.qkv_w, p.qkv_b, w, 2 * w),
                             s, shape.heads);
  } else {
    mixed = packed_attention(linear(h, p.qkv_w, p.qkv_b, false), s, shape.heads, shape.causal);
  }
  const at::Tensor y = residual + linear(mixed, p.out_w, p.out_b, false);
  const at::Tensor z = linear(norm(y, p.ln2_w, p.ln2_b, type), p.fc_w, p.fc_b, false);
  const at::Tensor act = shape.activation == kernels::Activation::gelu ? at::gelu(z) : QuickGelu::apply(z);
  return y + linear(act, p.proj_w, p.proj_b, false);
}

}  // namespace trireme::nn

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

// In x's type (whose statistics and sums over rows are f32 inside a GPU's kernel), then cast. A host's kernel sums the
// gradients of w and b in the type of x: there it is given f32.
at::Tensor norm(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, at::ScalarType type) {
  const at::Tensor y = x.is_cpu() ? x.to(w.scalar_type()) : x;
  return at::layer_norm(y, {y.size(1)}, w.to(y.scalar_type()), b.to(y.scalar_type()), eps).to(type);
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

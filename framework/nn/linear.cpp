#include "framework/nn/linear.h"

#include "framework/gradients/slot.h"
#include "framework/nn/weight_gradient.h"

#include <ATen/autocast_mode.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b,
                            bool relu) {
    const auto type = x.scalar_type();
    const at::Tensor cast = w.to(type);
    at::Tensor y = at::addmm(b.to(type), x, cast.t());
    if (relu) y.relu_();
    ctx->saved_data["relu"] = relu;
    // The sign of y tells where the gradient passes. The leaves tell where gradients go.
    ctx->save_for_backward({x, w, b, relu ? y : at::Tensor(), cast});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    const auto s = ctx->get_saved_variables();
    const at::Tensor &x = s[0], &w = s[1], &b = s[2];
    at::Tensor dz = dy[0];
    if (ctx->saved_data["relu"].toBool()) dz = at::threshold_backward(dz, s[3], 0);
    at::Tensor dx, dw, db;
    if (ctx->needs_input_grad(1)) dw = weight_gradient(w, dz, x);
    if (ctx->needs_input_grad(2)) {
      db = gradient_destination(b);
      if (!db.defined()) db = at::empty_like(b);
      at::sum_out(db, dz, {0}, /*keepdim=*/false, b.scalar_type());
      gradient_written(b);
    }
    if (ctx->needs_input_grad(0)) dx = at::mm(dz, s[4]);
    return {dx, dw, db, {}};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, bool relu) {
  // Under autocast the product's type is not the parameter's: ATen's own operators cast.
  if (at::autocast::is_autocast_enabled(x.device().type())) {
    const at::Tensor y = at::linear(x, w, b);
    return relu ? at::relu(y) : y;
  }
  return Linear::apply(x, w, b, relu);
}

}  // namespace trireme::nn

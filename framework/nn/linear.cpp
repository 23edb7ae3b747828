#include "framework/nn/linear.h"

#include "framework/gradients/slot.h"
#include "framework/kernels/activation.h"
#include "framework/nn/weight_gradient.h"

#include <optional>
#include <string_view>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Host memory in a type that the kernels know: each array is touched once.
bool fused(const at::Tensor& y) {
  return y.is_cpu() && (y.scalar_type() == at::kFloat || y.scalar_type() == at::kDouble) && y.dim() == 2;
}

template <class F>
void by_type(const at::Tensor& y, const F& f) {
  y.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

// x w^T + b, ReLU by oneDNN: bias and ReLU cost nothing there. A product alone only where rows do not begin at
// multiples of 64 bytes, where MKL is up to twice as slow.
using OneDnn = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                          c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

std::optional<at::Tensor> by_onednn(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b,
                                    bool relu) {
  const std::int64_t out = w.size(0), in = w.size(1);
  if (x.scalar_type() != at::kFloat || x.size(0) < 64 || out < 2 || in < 2) return std::nullopt;
  if (!b && out % 16 == 0 && in % 16 == 0) return std::nullopt;
  static const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  static const bool usable = found.has_value() && at::hasMKLDNN();
  if (!usable) return std::nullopt;
  return found->typed<OneDnn>().call(x, w, b, relu ? "relu" : "none", c10::List<std::optional<at::Scalar>>(),
                                     std::nullopt);
}

at::Tensor layer(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, bool relu) {
  if (!fused(x)) {
    return relu ? at::_addmm_activation(b, x, w.t()) : at::addmm(b, x, w.t());
  }
  if (auto y = by_onednn(x, w, b, relu)) return *y;
  at::Tensor y = at::mm(x, w.t());
  const at::Tensor bias = b.contiguous();
  by_type(y, [&]<class T>(T) {
    kernels::bias_relu<T>(y.mutable_data_ptr<T>(), bias.const_data_ptr<T>(), relu, y.size(0), y.size(1));
  });
  return y;
}

// dz and, where `db` is defined, its column sums. y: of a layer with ReLU, else undefined.
at::Tensor layer_backward(const at::Tensor& dy, const at::Tensor& y, const at::Tensor& db) {
  if (y.defined() && db.defined() && fused(y) && db.scalar_type() == y.scalar_type() && db.is_contiguous()) {
    const at::Tensor grad = dy.contiguous(), dz = at::empty_like(y);
    by_type(y, [&]<class T>(T) {
      kernels::relu_backward<T>(y.const_data_ptr<T>(), grad.const_data_ptr<T>(), dz.mutable_data_ptr<T>(),
                                db.data_ptr<T>(), y.size(0), y.size(1));
    });
    return dz;
  }
  const at::Tensor dz = y.defined() ? at::threshold_backward(dy, y, 0) : dy;
  if (db.defined()) {
    at::Tensor sum = db;
    at::sum_out(sum, dz, {0}, /*keepdim=*/false, db.scalar_type());
  }
  return dz;
}

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b,
                            bool relu) {
    const auto type = x.scalar_type();
    const at::Tensor cast = w.to(type);
    const at::Tensor y = layer(x, cast, b.to(type), relu);
    // The sign of y tells where the gradient passes. The leaves tell where gradients go.
    ctx->save_for_backward({x, w, b, relu ? y : at::Tensor(), cast});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    const auto s = ctx->get_saved_variables();
    const at::Tensor &x = s[0], &w = s[1], &b = s[2];
    at::Tensor dx, dw, db;
    if (ctx->needs_input_grad(2)) {
      db = gradient_destination(b);
      if (!db.defined()) db = at::empty_like(b);
    }
    const at::Tensor dz = layer_backward(dy[0], s[3], db);
    if (ctx->needs_input_grad(1)) dw = weight_gradient(w, dz, x);
    if (db.defined()) gradient_written(b);
    if (ctx->needs_input_grad(0)) {
      const auto other = fused(dz) ? by_onednn(dz, s[4].t(), {}, false) : std::nullopt;
      dx = other ? *other : at::mm(dz, s[4]);
    }
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

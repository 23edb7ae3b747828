#include "framework/nn/lm_ops.h"

#include "framework/base/tensor.h"
#include "framework/kernels/lm_pointwise.h"

#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool on_16_bytes(const at::Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 == 0; }

bool has_kernel(const at::Tensor& x) {
  return (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && on_16_bytes(x);
}

// run(a value of x's type).
template <class F>
void by_type(const at::Tensor& x, F run) {
  if (x.scalar_type() == at::kFloat)
    run(float());
  else
    run(kernels::BrainFloat());
}
template <class T>
const T* in(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}
template <class T>
T* out(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

// A gradient as the kernels read it.
at::Tensor whole(const at::Tensor& t) {
  if (!t.defined()) return t;
  const at::Tensor c = t.contiguous();
  return on_16_bytes(c) ? c : c.clone();
}

struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    at::Tensor y = at::empty_like(gate);
    by_type(gate, [&](auto v) {
      using T = decltype(v);
      kernels::swiglu(kernels::SwigluJob<T>{in<T>(gate), in<T>(up), nullptr, out<T>(y), nullptr, nullptr, gate.numel()},
                      buffer_of(y).place);
    });
    ctx->save_for_backward({gate, up});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], dy = whole(grads[0]);
    at::Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
    by_type(gate, [&](auto v) {
      using T = decltype(v);
      kernels::swiglu(
          kernels::SwigluJob<T>{in<T>(gate), in<T>(up), in<T>(dy), nullptr, out<T>(dgate), out<T>(dup), gate.numel()},
          buffer_of(dgate).place);
    });
    return {dgate, dup};
  }
};

at::Tensor turned(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  at::Tensor y = at::empty_like(x);
  by_type(x, [&](auto v) {
    using T = decltype(v);
    kernels::rotate_halves(kernels::RotateJob<T>{in<T>(x), out<T>(y), in<float>(cos), in<float>(sin), x.size(0),
                                                 x.size(1), x.size(2), back},
                           buffer_of(y).place);
  });
  return y;
}

struct Rotated : torch::autograd::Function<Rotated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin, false);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {turned(whole(grads[0]), saved[0], saved[1], true), {}, {}};
  }
};

// Outputs: y and the sum, which is x itself where nothing is added: either way gradients of both meet in one kernel, so
// layers that are computed again have the bits of those that are kept.
struct RmsNormed : torch::autograd::Function<RmsNormed> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& other,
                               const at::Tensor& weight, double eps) {
    const at::Tensor add = other.value_or(at::Tensor());
    const bool two = add.defined();
    at::Tensor y = at::empty_like(x), sum = two ? at::empty_like(x) : at::Tensor();
    by_type(x, [&](auto v) {
      using T = decltype(v);
      kernels::rms_norm(
          kernels::RmsNormJob<T>{in<T>(x), in<T>(add), in<T>(weight), out<T>(sum), out<T>(y),
                                 x.numel() / std::max<std::int64_t>(1, x.size(-1)), x.size(-1), float(eps)},
          buffer_of(y).place);
    });
    ctx->set_materialize_grads(false);
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["two"] = two;
    if (!two) sum = x;
    ctx->save_for_backward({sum, weight});
    return {y, sum};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const bool two = ctx->saved_data["two"].toBool();
    const at::Tensor dsum = whole(grads[1]);
    if (!grads[0].defined()) return {dsum, two ? dsum : at::Tensor(), {}, {}};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &sum = saved[0], &weight = saved[1], dy = whole(grads[0]);
    at::Tensor dx = at::empty_like(sum);
    by_type(sum, [&](auto v) {
      using T = decltype(v);
      kernels::rms_norm_backward(
          kernels::RmsNormBackwardJob<T>{in<T>(dy), in<T>(dsum), in<T>(sum), in<T>(weight), out<T>(dx),
                                         sum.numel() / std::max<std::int64_t>(1, sum.size(-1)), sum.size(-1),
                                         float(ctx->saved_data["eps"].toDouble())},
          buffer_of(dx).place);
    });
    return {dx, two ? dx : at::Tensor(), {}, {}};
  }
};

bool norm_has_kernel(const at::Tensor& x, const at::Tensor& add, const at::Tensor& weight) {
  return has_kernel(x) && has_kernel(weight) && weight.scalar_type() == x.scalar_type() && !weight.requires_grad() &&
         (!add.defined() || (has_kernel(add) && add.sizes() == x.sizes())) && x.size(-1) % 8 == 0 &&
         x.size(-1) <= kernels::most_norm_width;
}

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  const at::Tensor g = gate.contiguous(), u = up.contiguous();
  if (!has_kernel(g) || !has_kernel(u)) return at::silu(gate) * up;
  return Swiglu::apply(g, u);
}

at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const at::Tensor c = x.contiguous();
  if (has_kernel(c) && x.size(-1) % 2 == 0) return Rotated::apply(c, cos, sin);
  const auto halves = x.chunk(2, -1);
  return x * cos.to(x.scalar_type()) + at::cat({halves[1].neg(), halves[0]}, -1) * sin.to(x.scalar_type());
}

Normed rms_norm(const at::Tensor& x, const at::Tensor& add, const at::Tensor& weight, double eps) {
  const at::Tensor c = x.contiguous(), a = add.defined() ? add.contiguous() : add;
  if (norm_has_kernel(c, a, weight)) {
    const variable_list all = RmsNormed::apply(c, a.defined() ? std::optional(a) : std::nullopt, weight, eps);
    return {all[1], all[0]};
  }
  const at::Tensor sum = add.defined() ? x + add : x;
  return {sum, at::rms_norm(sum, {sum.size(-1)}, weight, eps)};
}

}  // namespace trireme::nn

#include "framework/nn/interaction.h"

#include "framework/base/tensor.h"
#include "framework/kernels/interaction.h"

#include <ATen/Dispatch.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node keeps that is no tensor.
struct Known : torch::CustomClassHolder {
  std::function<void(const at::Tensor&)> call;
};

template <class T>
kernels::Vectors<const T> vectors(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place) {
  return {x.const_data_ptr<T>(),
          rows.const_data_ptr<T>(),
          place.const_data_ptr<std::int64_t>(),
          place.numel(),
          x.size(0),
          x.size(1)};
}

at::Tensor forward_of(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place) {
  const std::int64_t f = place.numel() + 1;
  const at::Tensor out = at::empty({x.size(0), x.size(1) + f * (f - 1) / 2}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "interaction", [&] {
    kernels::interact({vectors<scalar_t>(x, rows, place), out.mutable_data_ptr<scalar_t>()}, buffer_of(x).place);
  });
  return out;
}

struct Interaction : torch::autograd::Function<Interaction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place,
                            const c10::intrusive_ptr<Known>& known) {
    ctx->saved_data["known"] = at::IValue::make_capsule(known);
    ctx->save_for_backward({x, rows, place});
    return forward_of(x, rows, place);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &rows = saved[1], &place = saved[2], grad = grads[0].contiguous();
    const at::Tensor dx = at::empty_like(x), drows = at::empty_like(rows);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "interaction", [&] {
      const auto in = vectors<scalar_t>(x, rows, place);
      kernels::interact_backward(
          {in,
           grad.const_data_ptr<scalar_t>(),
           {dx.mutable_data_ptr<scalar_t>(), drows.mutable_data_ptr<scalar_t>(), in.place, in.tables, in.n, in.d}},
          buffer_of(x).place);
    });
    const auto holder = ctx->saved_data["known"].toCapsule();
    const auto& known = static_cast<const Known&>(*holder);
    if (!known.call) return {dx, drows, {}, {}};
    known.call(drows);
    return {dx, {}, {}, {}};  // autograd would copy what somebody holds
  }
};

}  // namespace

at::Tensor interaction(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place,
                       std::function<void(const at::Tensor&)> known) {
  auto holder = c10::make_intrusive<Known>();
  holder->call = std::move(known);
  return Interaction::apply(x.contiguous(), rows.contiguous(), place, holder);
}

}  // namespace trireme::nn

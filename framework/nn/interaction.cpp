#include "framework/nn/interaction.h"

#include "framework/kernels/interaction.h"

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node keeps that is no tensor.
struct Places : torch::CustomClassHolder {
  std::vector<std::int64_t> of_table;
  std::function<void(const at::Tensor&)> known;
};

template <class T>
kernels::Vectors<const T> vectors(const at::Tensor& x, const at::Tensor& rows, const Places& p) {
  return {x.const_data_ptr<T>(), rows.const_data_ptr<T>(), p.of_table, x.size(0), x.size(1)};
}

at::Tensor index_of(const Places& p, at::Device device) { return at::tensor(p.of_table, at::kLong).to(device); }

// [n, F + 1, d]
at::Tensor stacked(const at::Tensor& x, const at::Tensor& rows, const Places& p) {
  return at::cat({x.unsqueeze(1), rows.index_select(0, index_of(p, x.device())).transpose(0, 1)}, 1);
}

// Flat places of the strictly lower triangle of a matrix of f rows.
at::Tensor triangle(std::int64_t f, at::Device device) {
  const at::Tensor at = at::tril_indices(f, f, -1, at::TensorOptions(device).dtype(at::kLong));
  return at[0] * f + at[1];
}

at::Tensor forward_of(const at::Tensor& x, const at::Tensor& rows, const Places& p) {
  const std::int64_t n = x.size(0), f = std::int64_t(p.of_table.size()) + 1;
  if (!x.is_cpu() || (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble)) {
    const at::Tensor t = stacked(x, rows, p);
    const at::Tensor s = at::bmm(t, t.transpose(1, 2)).view({n, f * f});
    return at::cat({x, s.index_select(1, triangle(f, x.device()))}, 1);
  }
  const at::Tensor out = at::empty({n, x.size(1) + f * (f - 1) / 2}, x.options());
  if (x.scalar_type() == at::kDouble)
    kernels::interact<double>(vectors<double>(x, rows, p), out.mutable_data_ptr<double>());
  else
    kernels::interact<float>(vectors<float>(x, rows, p), out.mutable_data_ptr<float>());
  return out;
}

template <class T>
void backward_on_host(const at::Tensor& x, const at::Tensor& rows, const Places& p, const at::Tensor& grad,
                      at::Tensor& dx, at::Tensor& drows) {
  kernels::interact_backward<T>(
      vectors<T>(x, rows, p), grad.const_data_ptr<T>(),
      {dx.mutable_data_ptr<T>(), drows.mutable_data_ptr<T>(), p.of_table, x.size(0), x.size(1)});
}

void backward_of(const at::Tensor& x, const at::Tensor& rows, const Places& p, const at::Tensor& grad, at::Tensor& dx,
                 at::Tensor& drows) {
  dx = at::empty_like(x), drows = at::empty_like(rows);
  if (x.is_cpu() && x.scalar_type() == at::kDouble) return backward_on_host<double>(x, rows, p, grad, dx, drows);
  if (x.is_cpu() && x.scalar_type() == at::kFloat) return backward_on_host<float>(x, rows, p, grad, dx, drows);
  const std::int64_t n = x.size(0), d = x.size(1), f = std::int64_t(p.of_table.size()) + 1;
  at::Tensor s = at::zeros({n, f * f}, x.options());
  s.index_copy_(1, triangle(f, x.device()), grad.narrow(1, d, f * (f - 1) / 2));
  s = s.view({n, f, f});
  const at::Tensor dt = at::bmm(s + s.transpose(1, 2), stacked(x, rows, p));
  dx = dt.select(1, 0) + grad.narrow(1, 0, d);
  drows.index_copy_(0, index_of(p, x.device()), dt.narrow(1, 1, f - 1).transpose(0, 1));
}

struct Interaction : torch::autograd::Function<Interaction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rows,
                            const c10::intrusive_ptr<Places>& places) {
    ctx->saved_data["places"] = at::IValue::make_capsule(places);
    ctx->save_for_backward({x, rows});
    return forward_of(x, rows, *places);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad) {
    const auto saved = ctx->get_saved_variables();
    const auto holder = ctx->saved_data["places"].toCapsule();
    const auto& places = static_cast<const Places&>(*holder);
    at::Tensor dx, drows;
    backward_of(saved[0], saved[1], places, grad[0].contiguous(), dx, drows);
    if (places.known) places.known(drows);
    return {dx, drows, {}};
  }
};

}  // namespace

at::Tensor interaction(const at::Tensor& x, const at::Tensor& rows, std::vector<std::int64_t> place,
                       std::function<void(const at::Tensor&)> known) {
  auto places = c10::make_intrusive<Places>();
  places->of_table = std::move(place);
  places->known = std::move(known);
  return Interaction::apply(x.contiguous(), rows.contiguous(), places);
}

}  // namespace trireme::nn

#include "framework/nn/lora_pass.h"

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Kept : torch::CustomClassHolder {
  std::shared_ptr<const LoraPass> pass;
  std::int64_t target = 0;
  Projection base;
};

struct Adapted : torch::autograd::Function<Adapted> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& anchor,
                            const c10::intrusive_ptr<Kept>& kept) {
    const Projection& base = kept->base;
    at::Tensor y = base.bias.defined() ? at::addmm(base.bias, x, base.weight.t()) : at::mm(x, base.weight.t());
    const at::Tensor s = lora_forward(*kept->pass, kept->target, x, y);
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward({x, s});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dx;
    if (ctx->needs_input_grad(0)) dx = at::mm(dy, kept->base.weight);
    lora_backward(*kept->pass, kept->target, saved[0], saved[1], dy, dx);
    return {dx, {}, {}};
  }
};

}  // namespace

at::Tensor AdapterStore::project(std::int64_t target, const at::Tensor& x) {
  auto kept = c10::make_intrusive<Kept>();
  kept->pass = pass_;
  kept->target = target;
  kept->base = targets_[std::size_t(target)];
  return Adapted::apply(x.contiguous(), anchor_, kept);
}

std::vector<at::Tensor> AdapterStore::project(std::span<const std::int64_t> targets, const at::Tensor& x) {
  std::vector<at::Tensor> all;
  for (const auto target : targets) all.push_back(project(target, x));
  return all;
}

}  // namespace trireme::nn

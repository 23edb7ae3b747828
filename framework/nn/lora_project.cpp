#include "framework/nn/lora_pass.h"

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Kept : torch::CustomClassHolder {
  std::shared_ptr<const LoraPass> pass;
  struct Target {
    std::int64_t index;
    std::uint32_t module;
    at::Tensor weight, bias;
  };
  std::vector<Target> targets;
};

// Several targets of one input are one node: gradients of the input are summed by the products that make them.
struct Adapted : torch::autograd::Function<Adapted> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& anchor,
                               const c10::intrusive_ptr<Kept>& kept) {
    variable_list all, saved{x};
    for (const auto& t : kept->targets) {
      at::Tensor y = t.bias.defined() ? at::addmm(t.bias, x, t.weight.t()) : at::mm(x, t.weight.t());
      saved.push_back(lora_forward(*kept->pass, t.index, t.module, x, y));
      all.push_back(y);
    }
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(saved);
    return all;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    at::Tensor dx;
    for (std::size_t i = 0; i < kept->targets.size(); ++i) {
      const auto& t = kept->targets[i];
      const at::Tensor dy = grads[i].contiguous();
      if (ctx->needs_input_grad(0)) {
        if (i == 0)
          dx = at::mm(dy, t.weight);
        else
          dx.addmm_(dy, t.weight);
      }
      lora_backward(*kept->pass, t.index, t.module, saved[0], saved[i + 1], dy, dx);
    }
    return {dx, {}, {}};
  }
};

}  // namespace

std::vector<at::Tensor> AdapterStore::project(std::span<const std::int64_t> targets, const at::Tensor& x) {
  auto kept = c10::make_intrusive<Kept>();
  kept->pass = pass_;
  for (const auto target : targets) {
    const auto t = std::size_t(target);
    kept->targets.push_back({target, modules_[t], targets_[t].weight, targets_[t].bias});
  }
  return Adapted::apply(x.contiguous(), anchor_, kept);
}

at::Tensor AdapterStore::project(std::int64_t target, const at::Tensor& x) {
  return project(std::span(&target, 1), x)[0];
}

}  // namespace trireme::nn

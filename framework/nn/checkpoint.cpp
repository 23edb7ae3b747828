#include "framework/nn/checkpoint.h"

#include <utility>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Kept : torch::CustomClassHolder {
  CheckpointedPart part;
};

thread_local bool again = false;

struct Again {
  const bool before = std::exchange(again, true);
  ~Again() { again = before; }
};

struct Checkpointed : torch::autograd::Function<Checkpointed> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<Kept>& kept) {
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(inputs.vec());
    return kept->part(inputs[0], std::span(inputs.data(), inputs.size()).subspan(1));
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    // Leaves of their own: what is found here is handed to the outer pass, which reduces it.
    variable_list leaves, wanted;
    for (const auto& t : ctx->get_saved_variables()) {
      const bool needed = ctx->needs_input_grad(leaves.size());
      leaves.push_back(t.detach().set_requires_grad(needed));
      if (needed) wanted.push_back(leaves.back());
    }
    at::Tensor y;
    {
      const at::AutoGradMode graph(true);
      const Again now;
      const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // as in the first pass
      y = kept->part(leaves[0], std::span(leaves).subspan(1));
    }
    const variable_list found = torch::autograd::grad({y}, wanted, {dy[0]});
    variable_list grads;
    auto next = found.begin();
    for (const auto& leaf : leaves) grads.push_back(leaf.requires_grad() ? *next++ : at::Tensor());
    grads.emplace_back();
    return grads;
  }
};

}  // namespace

bool computed_again() { return again; }

at::Tensor checkpointed(const CheckpointedPart& part, const at::Tensor& x, std::span<const at::Tensor> weights) {
  variable_list inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  auto kept = c10::make_intrusive<Kept>();
  kept->part = part;
  return Checkpointed::apply(at::TensorList(inputs), kept);  // in a vector it would see no variables
}

}  // namespace trireme::nn

#include "framework/nn/checkpoint.h"

#include <ATen/autocast_mode.h>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Autocast as it was in the first pass; each pass makes casts of its own, for those of the first have no graph.
class SameAutocast {
 public:
  SameAutocast(at::DeviceType device, bool on, at::ScalarType type)
      : device_(device),
        was_on_(at::autocast::is_autocast_enabled(device)),
        cached_(at::autocast::is_autocast_cache_enabled()),
        was_type_(at::autocast::get_autocast_dtype(device)) {
    set(on, type, false);
  }
  ~SameAutocast() { set(was_on_, was_type_, cached_); }

 private:
  void set(bool on, at::ScalarType type, bool cache) const {
    at::autocast::set_autocast_enabled(device_, on);
    at::autocast::set_autocast_dtype(device_, type);
    at::autocast::set_autocast_cache_enabled(cache);
  }
  at::DeviceType device_;
  bool was_on_, cached_;
  at::ScalarType was_type_;
};

struct Kept : torch::CustomClassHolder {
  CheckpointedPart part;
  bool autocast;
  at::ScalarType type;
};

struct Checkpointed : torch::autograd::Function<Checkpointed> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<Kept>& kept) {
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(inputs.vec());
    const SameAutocast autocast(inputs[0].device().type(), kept->autocast, kept->type);
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
      const SameAutocast autocast(leaves[0].device().type(), kept->autocast, kept->type);
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

at::Tensor checkpointed(const CheckpointedPart& part, const at::Tensor& x, std::span<const at::Tensor> weights) {
  variable_list inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const auto device = x.device().type();
  auto kept = c10::make_intrusive<Kept>();
  kept->part = part;
  // A caller may have shut autocast out for this thread, whatever its switch says.
  kept->autocast =
      at::autocast::is_autocast_enabled(device) &&
      !c10::impl::tls_is_dispatch_key_excluded(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  kept->type = at::autocast::get_autocast_dtype(device);
  return Checkpointed::apply(at::TensorList(inputs), kept);  // in a vector it would see no variables
}

}  // namespace trireme::nn

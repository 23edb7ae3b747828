#include "comm/error.h"
#include "framework/nn/lora_pass.h"

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Kept : torch::CustomClassHolder {
  LoraCall call;
  LoraCall out;  // of Gated
};

// Several targets of one input are one node: gradients of the input are summed by the products that make them.
struct Adapted : torch::autograd::Function<Adapted> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& anchor,
                               const c10::intrusive_ptr<Kept>& kept) {
    variable_list saved;
    variable_list all = lora_forward(kept->call, x, saved);
    saved.push_back(x);
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(saved);
    return all;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    auto saved = ctx->get_saved_variables();
    const at::Tensor x = saved.back();
    saved.pop_back();
    for (auto& g : grads) g = g.contiguous();
    return {lora_backward(kept->call, x, saved, grads, ctx->needs_input_grad(0)), {}, {}};
  }
};

struct Gated : torch::autograd::Function<Gated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& anchor,
                            const c10::intrusive_ptr<Kept>& kept) {
    variable_list saved;
    const at::Tensor y = gated_forward(kept->call, kept->out, x, saved);
    saved.push_back(x);
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(saved);
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    auto saved = ctx->get_saved_variables();
    const at::Tensor x = saved.back();
    saved.pop_back();
    return {gated_backward(kept->call, kept->out, x, saved, grads[0].contiguous(), ctx->needs_input_grad(0)), {}, {}};
  }
};

const LoraArm& arm_of(const LoraPass& pass) {
  switch (pass.backend) {
    case LoraBackend::grouped_mm:
      return lora_grouped_mm;
    case LoraBackend::bmm:
      return lora_bmm;
    case LoraBackend::wide:
      return lora_wide;
    default:
      return lora_loop;
  }
}

bool adapted(const LoraPass& pass, const LoraTarget& t) {
  return !pass.groups.empty() && pass.most_rank[std::size_t(t.index)] > 0;
}

}  // namespace

at::Tensor BaseProducts::operator()(const LoraTarget& t) {
  if (t.fp8) {
    if (!rows_) rows_ = fp8_rows(x_);
    return fp8_product(*rows_, *t.fp8, t.bias, x_.scalar_type());
  }
  return t.bias.defined() ? at::addmm(t.bias, x_, t.weight.t()) : at::mm(x_, t.weight.t());
}

void add_base_gradient(const LoraTarget& t, const at::Tensor& dy, at::Tensor& dx) {
  if (!t.fp8 && dx.defined()) {
    dx.addmm_(dy, t.weight);
    return;
  }
  const at::Tensor found = t.fp8 ? fp8_product_back(dy, *t.fp8) : at::mm(dy, t.weight);
  dx = dx.defined() ? dx.add_(found) : found;
}

std::vector<at::Tensor> lora_forward(const LoraCall& call, const at::Tensor& x, std::vector<at::Tensor>& kept) {
  const LoraPass& pass = *call.pass;
  if (pass.backend == LoraBackend::kernels && !pass.groups.empty()) return kernels_forward(call, x, kept);
  std::vector<at::Tensor> all;
  BaseProducts base(x);
  for (const auto& t : call.targets) {
    all.push_back(base(t));
    kept.push_back(adapted(pass, t) ? arm_of(pass).forward(pass, t.index, dropped(pass, t.module, x), all.back())
                                    : at::Tensor());
  }
  return all;
}

at::Tensor lora_backward(const LoraCall& call, const at::Tensor& x, const std::vector<at::Tensor>& kept,
                         const std::vector<at::Tensor>& dy, bool wanted) {
  const LoraPass& pass = *call.pass;
  if (pass.backend == LoraBackend::kernels && !pass.groups.empty()) return kernels_backward(call, x, kept, dy, wanted);
  at::Tensor dx;
  for (std::size_t i = 0; i < call.targets.size(); ++i) {
    const auto& t = call.targets[i];
    if (wanted) add_base_gradient(t, dy[i], dx);
    if (!adapted(pass, t)) continue;
    each_adapter(pass, t.index, [](const LoraGroup&, const LoraAdapter& w) { w.settle(); });
    at::Tensor change = wanted && pass.dropout ? at::zeros_like(dx) : dx;
    arm_of(pass).backward(pass, t.index, dropped(pass, t.module, x), kept[i], dy[i], change);
    if (!wanted || !pass.dropout) continue;
    drop(pass, t.module, change);
    dx.add_(change);
  }
  return dx;
}

LoraCall AdapterStore::call_of(std::span<const std::int64_t> targets) const {
  LoraCall call{pass_, {}};
  for (const auto target : targets) {
    const auto t = std::size_t(target);
    call.targets.push_back({target, modules_.at(t), targets_[t].weight, targets_[t].bias, fp8_[t]});
  }
  return call;
}

std::vector<at::Tensor> AdapterStore::project(std::span<const std::int64_t> targets, const at::Tensor& x) {
  check_input(targets, x);
  auto kept = c10::make_intrusive<Kept>();
  kept->call = call_of(targets);
  return Adapted::apply(x.contiguous(), anchor_, kept);
}

void AdapterStore::check_input(std::span<const std::int64_t> targets, const at::Tensor& x) const {
  if (!pass_->groups.empty() && pass_->groups.back().rows.last > x.size(0))
    throw Error(ExitCode::bug, "project", "rows of slots go beyond the batch's " + std::to_string(x.size(0)));
  for (const auto target : targets) {
    const Projection& t = targets_.at(std::size_t(target));
    if (x.dim() != 2 || x.size(1) != t.weight.size(1) || x.scalar_type() != t.weight.scalar_type())
      throw Error(ExitCode::bug, "project", t.name + " has another width or type than its input");
  }
}

at::Tensor AdapterStore::gated(std::int64_t gate, std::int64_t up, std::int64_t down, const at::Tensor& x) {
  const std::int64_t both[] = {gate, up};
  check_input(both, x);
  auto kept = c10::make_intrusive<Kept>();
  kept->call = call_of(both);
  kept->out = call_of(std::span(&down, 1));
  if (!gated_by_kernel(kept->call, kept->out, x)) return {};
  return Gated::apply(x.contiguous(), anchor_, kept);
}

at::Tensor AdapterStore::project(std::int64_t target, const at::Tensor& x) {
  return project(std::span(&target, 1), x)[0];
}

}  // namespace trireme::nn

#include "framework/optimizer.h"

#include "framework/tensor.h"

namespace trireme {

Optimizer::Optimizer(std::vector<Param> params, const OptimizerConfig& config)
    : params_(std::move(params)), config_(config) {
  if (params_.empty()) return;
  at::NoGradGuard no_grad;
  const bool adam = config.name == "adamw", moment = adam || config.momentum != 0;  // plain sgd keeps nothing
  count_ = at::zeros({}, params_[0].value.options().dtype(at::kFloat).requires_grad(false));
  for (const auto& p : params_) {
    const auto options = p.value.options().requires_grad(false);
    if (moment) first_.push_back(at::zeros(p.value.sizes(), options));
    if (adam) second_.push_back(at::zeros(p.value.sizes(), options));
    auto g = std::find_if(groups_.begin(), groups_.end(), [&](const Group& x) { return x.name == p.group; });
    if (g == groups_.end()) g = groups_.insert(groups_.end(), Group{p.group, {}, {}, {}, {}});
    g->values.push_back(p.value);
    if (moment) g->first.push_back(first_.back());
    if (adam) g->second.push_back(second_.back());
    g->steps.push_back(count_);
  }
}

void Optimizer::step(const std::function<GroupSettings(std::string_view)>& settings, const at::Tensor& scale,
                     const at::Tensor& masked) {
  if (params_.empty()) return;
  at::Tensor skip = masked;
  if (skip.defined() && skip.is_cpu()) {  // the host knows already
    if (*skip.const_data_ptr<float>() != 0) return;
    skip.reset();
  }
  at::NoGradGuard no_grad;
  count_.add_(1);
  const auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt; };
  for (auto& g : groups_) {
    const GroupSettings s = settings(g.name);
    std::vector<at::Tensor> grads;
    grads.reserve(g.values.size());
    for (const auto& v : g.values) grads.push_back(v.grad());
    if (config_.name == "adamw")
      at::_fused_adamw_(g.values, grads, g.first, g.second, {}, g.steps, s.lr, config_.beta1, config_.beta2,
                        s.weight_decay, config_.eps, /*amsgrad=*/false, /*maximize=*/false, optional(scale),
                        optional(skip));
    else
      at::_fused_sgd_(g.values, grads, g.first, s.weight_decay, config_.momentum, s.lr, /*dampening=*/0,
                      /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false, optional(scale),
                      optional(skip));
  }
  if (skip.defined()) count_.sub_(skip);
}

void Optimizer::state(Archive& ar) {
  if (params_.empty()) return;
  archive(ar, "count", count_);
  for (std::size_t i = 0; i < params_.size(); ++i) {
    if (!first_.empty()) archive(ar, "first/" + params_[i].name, first_[i]);
    if (!second_.empty()) archive(ar, "second/" + params_[i].name, second_[i]);
  }
}

}  // namespace trireme

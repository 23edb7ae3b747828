#include "framework/optim/optimizer.h"

#include "framework/optim/rule.h"

#include "framework/base/replicas.h"
#include "framework/base/tensor.h"

namespace trireme {

Optimizer::~Optimizer() = default;

Optimizer::Optimizer(std::vector<Param> params, const OptimizerConfig& config)
    : params_(std::move(params)), rule_(UpdateRules::create(config.name, config, "optimizer.name")) {
  if (params_.empty()) return;
  count_ = at::zeros({}, params_[0].value.options().dtype(at::kFloat).requires_grad(false));
  std::vector<Slice> whole;
  for (std::size_t i = 0; i < params_.size(); ++i) whole.push_back({i, 0, params_[i].value.numel()});
  build(whole);
}

void Optimizer::own(std::span<const Slice> slices) {
  sharded_ = true;
  build(slices);
}

at::Tensor Optimizer::part_of(const at::Tensor& whole, const Slice& s) const {
  return sharded_ ? whole.detach().view(-1).narrow(0, s.begin, s.end - s.begin) : whole;
}

void Optimizer::build(std::span<const Slice> slices) {
  at::NoGradGuard no_grad;
  groups_.clear();
  for (const Slice& s : slices) {
    if (s.begin == s.end) continue;
    Part part{s, part_of(params_[s.param].value, s), {}, {}};
    const auto options = part.value.options().requires_grad(false);
    if (rule_->moments() > 0) part.first = at::zeros(part.value.sizes(), options);
    if (rule_->moments() > 1) part.second = at::zeros(part.value.sizes(), options);
    groups_[params_[s.param].group].push_back(std::move(part));
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
  for (auto& [name, parts] : groups_) {
    GroupStep s{{}, {}, {}, {}, count_, settings(name), optional(scale), optional(skip)};
    for (const Part& p : parts) {
      s.values.push_back(p.value);
      s.grads.push_back(part_of(params_[p.slice.param].value.grad(), p.slice));
      if (p.first.defined()) s.first.push_back(p.first);
      if (p.second.defined()) s.second.push_back(p.second);
    }
    rule_->update(s);
  }
  if (skip.defined()) count_.sub_(skip);
}

void Optimizer::archive_moment(Archive& ar, std::string_view name, const Part& part, at::Tensor& moment) const {
  if (!moment.defined()) return;
  const Param& p = params_[part.slice.param];
  archive(ar, std::string(name) + "/" + p.name, moment, sharded_ ? sharing_of(p, part.slice) : p.sharing);
}

void Optimizer::state(Archive& ar) {
  if (params_.empty()) return;
  archive(ar, "count", count_);
  for (auto& [group, parts] : groups_) {
    for (Part& part : parts) {
      archive_moment(ar, "first", part, part.first);
      archive_moment(ar, "second", part, part.second);
    }
  }
}

}  // namespace trireme

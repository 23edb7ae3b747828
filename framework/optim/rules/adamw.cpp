// AdamW (Loshchilov and Hutter, arXiv 1711.05101): p <- p (1 - lr wd) - lr mhat / (sqrt(vhat) + eps).
#include "framework/optim/rule.h"

namespace trireme {
namespace {

class AdamW : public UpdateRule {
 public:
  explicit AdamW(const OptimizerConfig& c) : c_(c) {}
  int moments() const override { return 2; }

  void update(const GroupStep& s) const override {
    std::vector<at::Tensor> values = s.values, grads = s.grads, first = s.first, second = s.second;
    const std::vector<at::Tensor> counts(values.size(), s.count);
    const auto go = [&](const auto& lr) {
      at::_fused_adamw_(values, grads, first, second, {}, counts, lr, c_.beta1, c_.beta2, s.settings.weight_decay,
                        c_.eps, /*amsgrad=*/false, /*maximize=*/false, s.scale, s.skip);
    };
    s.settings.device_lr.defined() ? go(s.settings.device_lr) : go(s.settings.lr);
  }

 private:
  OptimizerConfig c_;
};

const UpdateRules::Entry registered("adamw", [](const OptimizerConfig& c) { return std::make_unique<AdamW>(c); });

}  // namespace
}  // namespace trireme

// SGD with momentum: g <- g + wd p; m <- momentum m + g; p <- p - lr m, or, by Nesterov, p <- p - lr (g + momentum m).
// A group with a momentum of its own is updated without Nesterov.
#include "framework/optim/rule.h"

namespace trireme {
namespace {

class Sgd : public UpdateRule {
 public:
  Sgd(const OptimizerConfig& c, bool nesterov) : momentum_(c.momentum), nesterov_(nesterov) {}
  int moments() const override { return momentum_ != 0 ? 1 : 0; }

  void update(const GroupStep& s) const override {
    std::vector<at::Tensor> values = s.values, grads = s.grads, first = s.first;
    const double momentum = s.settings.momentum.value_or(momentum_);
    if (momentum == 0) first.clear();
    const bool nesterov = nesterov_ && momentum != 0 && !s.settings.momentum;
    const auto go = [&](const auto& lr) {
      at::_fused_sgd_(values, grads, first, s.settings.weight_decay, momentum, lr, /*dampening=*/0, nesterov,
                      /*maximize=*/false, /*is_first_step=*/false, s.scale, s.skip);
    };
    s.settings.device_lr.defined() ? go(s.settings.device_lr) : go(s.settings.lr);
  }

 private:
  double momentum_;
  bool nesterov_;
};

const UpdateRules::Entry plain("sgd", [](const OptimizerConfig& c) { return std::make_unique<Sgd>(c, false); });
const UpdateRules::Entry nesterov("nesterov", [](const OptimizerConfig& c) { return std::make_unique<Sgd>(c, true); });

}  // namespace
}  // namespace trireme

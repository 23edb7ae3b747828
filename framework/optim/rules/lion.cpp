// Lion (arXiv 2302.06675): p <- p (1 - lr wd) - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g.
#include "framework/optim/rules/masked.h"

namespace trireme {
namespace {

class Lion : public UpdateRule {
 public:
  explicit Lion(const OptimizerConfig& c) : c_(c) {}
  int moments() const override { return 1; }

  void update(const GroupStep& s) const override {
    const Masked now(s);
    std::vector<at::Tensor> values = s.values, m = s.first;
    std::vector<at::Tensor> direction = at::_foreach_mul(m, c_.beta1);
    at::_foreach_add_(direction, now.grads, 1 - c_.beta1);
    at::_foreach_sign_(direction);
    if (s.settings.weight_decay != 0) at::_foreach_add_(direction, values, s.settings.weight_decay);
    at::_foreach_mul_(direction, now.lr);
    at::_foreach_sub_(values, direction);
    average_into(m, now.grads, c_.beta2, now.on);
  }

 private:
  OptimizerConfig c_;
};

const UpdateRules::Entry registered("lion", [](const OptimizerConfig& c) { return std::make_unique<Lion>(c); });

}  // namespace
}  // namespace trireme

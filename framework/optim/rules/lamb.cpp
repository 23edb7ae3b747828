// LAMB (arXiv 1904.00962): direction = mhat / (sqrt(vhat) + eps) + wd p; p <- p - lr ratio direction, with
// ratio = |p| / |direction| for each tensor that decays (1 where either is 0), else 1. Norms are of whole tensors: not
// with zero: 1.
#include "framework/optim/rules/masked.h"

namespace trireme {
namespace {

class Lamb : public UpdateRule {
 public:
  explicit Lamb(const OptimizerConfig& c) : c_(c) {}
  int moments() const override { return 2; }

  void update(const GroupStep& s) const override {
    const Masked now(s);
    std::vector<at::Tensor> values = s.values, m = s.first, v = s.second;
    average_into(m, now.grads, c_.beta1, now.on);
    average_into(v, at::_foreach_mul(now.grads, now.grads), c_.beta2, now.on);
    std::vector<at::Tensor> direction = at::_foreach_div(m, correction(s, c_.beta1));
    const std::vector<at::Tensor> root = at::_foreach_div(v, correction(s, c_.beta2));
    at::_foreach_sqrt_(root);
    at::_foreach_add_(root, c_.eps);
    at::_foreach_div_(direction, root);
    if (s.settings.weight_decay != 0) {
      at::_foreach_add_(direction, values, s.settings.weight_decay);
      const auto of_values = at::_foreach_norm(values), of_directions = at::_foreach_norm(direction);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const at::Tensor known = (of_values[i] > 0).logical_and(of_directions[i] > 0);
        direction[i].mul_(at::where(known, of_values[i] / of_directions[i], at::ones_like(of_values[i])));
      }
    }
    at::_foreach_mul_(direction, now.lr);
    at::_foreach_sub_(values, direction);
  }

 private:
  // 1 - beta^updates, of the parameters' type.
  static at::Tensor correction(const GroupStep& s, double beta) {
    return (1 - at::pow(beta, s.count.to(at::kDouble))).to(s.values[0].scalar_type());
  }

  OptimizerConfig c_;
};

const UpdateRules::Entry registered("lamb", [](const OptimizerConfig& c) { return std::make_unique<Lamb>(c); });

}  // namespace
}  // namespace trireme

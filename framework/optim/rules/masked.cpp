#include "framework/optim/rules/masked.h"

namespace trireme {

Masked::Masked(const GroupStep& s) : grads(s.grads) {
  const auto options = s.values[0].options().requires_grad(false);
  const auto type = s.values[0].scalar_type();
  on = s.skip ? (1 - *s.skip).to(type) : at::ones({}, options);
  lr = (s.settings.device_lr.defined() ? s.settings.device_lr.to(type) : at::full({}, s.settings.lr, options)) * on;
  if (s.scale) grads = at::_foreach_div(grads, s.scale->to(type));
  if (!s.skip) return;
  const at::Tensor skipped = *s.skip > 0, zero = at::zeros({}, options);
  for (auto& g : grads) g = at::where(skipped, zero, g);  // 0 times what is not finite would not be 0
}

void average_into(std::vector<at::Tensor>& m, const std::vector<at::Tensor>& x, double beta, const at::Tensor& on) {
  const std::vector<at::Tensor> way = at::_foreach_sub(x, m);
  at::_foreach_mul_(way, on * (1 - beta));
  at::_foreach_add_(m, way);
}

}  // namespace trireme

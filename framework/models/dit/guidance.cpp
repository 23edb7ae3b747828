#include "framework/models/dit/guidance.h"

#include <ATen/ATen.h>

namespace trireme {
namespace {

at::Tensor both(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() ? at::cat({a, b}) : at::Tensor();
}

Conditioning both(const Conditioning& c, const Conditioning& n) {
  return {both(c.text, n.text),
          both(c.pooled, n.pooled),
          both(c.guidance, n.guidance),
          both(c.image, n.image),
          both(c.image_tokens, n.image_tokens),
          both(c.modulation, n.modulation)};
}

}  // namespace

at::Tensor velocity_of(Denoiser& model, at::ScalarType type, const Conditioning& condition, const at::Tensor& x,
                       double sigma, const DitHooks& hooks) {
  const at::Tensor t = at::full({x.size(0)}, sigma, x.options().dtype(at::kFloat));
  return model.forward(x.to(type), t, condition, hooks).to(at::kFloat);
}

at::Tensor guided_velocity(Denoiser& model, at::ScalarType type, const Conditioning& condition,
                           const Conditioning& none, const at::Tensor& x, double sigma, double guidance,
                           const DitHooks& hooks) {
  const at::Tensor v = velocity_of(model, type, both(condition, none), at::cat({x, x}), sigma, hooks);
  return guided_sum(v.narrow(0, 0, x.size(0)), v.narrow(0, x.size(0), x.size(0)), guidance);
}

at::Tensor guided_sum(const at::Tensor& conditional, const at::Tensor& unconditional, double guidance) {
  return at::add(unconditional, at::sub(conditional, unconditional), guidance);
}

}  // namespace trireme

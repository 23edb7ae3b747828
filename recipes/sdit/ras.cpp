#include "recipes/sdit/ras.h"

#include "comm/error.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace trireme::sdit {

at::Tensor ras_metric(const at::Tensor& diff, TokenPatch patch, bool norm) {
  const at::Tensor map = norm ? diff.norm(2, 1) : diff.std(1, true);
  return at::avg_pool3d(map.unsqueeze(1), {patch.frames, patch.side, patch.side}).flatten(1);
}

RasChoice choose_ras(const at::Tensor& metric, at::Tensor& left_out_before, std::int64_t skip, const RasRule& rule) {
  const at::Tensor scaled = metric * (rule.starvation_sign * rule.starvation * left_out_before).exp();
  const at::Tensor order = std::get<1>(scaled.sort(/*stable=*/true, 1, /*descending=*/false));
  const auto n = metric.size(1);
  const auto low = std::int64_t(double(skip) * (1 - rule.high_ratio)),
             high = std::int64_t(double(skip) * rule.high_ratio);
  const at::Tensor left_out = at::cat({order.narrow(1, 0, low), order.narrow(1, n - high, high)}, 1);
  left_out_before.scatter_add_(1, left_out, at::ones_like(left_out, left_out_before.options()));
  return {std::get<0>(order.narrow(1, low, n - high - low).sort(1)), left_out};
}

std::vector<std::int64_t> ras_skips(const RasPlan& plan, std::int64_t tokens) {
  const auto floored = [](std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); };
  const auto average = std::int64_t((1 - plan.sample_ratio) * double(tokens));
  std::vector<std::int64_t> skips;
  for (std::int64_t step = 0; step < plan.steps; ++step) {
    std::int64_t skip = average;
    if (plan.ramp_steps > 0) {
      const auto middle = (plan.steps + plan.start) / plan.ramp_steps / 2;
      skip = floored(average + plan.ramp * (step / plan.ramp_steps - middle), 64) * 64;
    }
    const bool dense = step < plan.start || step >= plan.end ||
                       std::find(plan.resets.begin(), plan.resets.end(), step) != plan.resets.end();
    skips.push_back(dense ? 0 : skip);
    if (!dense && (skip < 0 || skip > tokens))
      throw UsageError("ras.ramp",
                       "step " + std::to_string(step) + " would leave out " + std::to_string(skip) + " of " +
                           std::to_string(tokens) + " tokens",
                       "a smaller ramp");
  }
  return skips;
}

}  // namespace trireme::sdit

#include "framework/skipped_steps.h"

#include <algorithm>
#include <limits>

namespace trireme {
namespace {

constexpr double never = std::numeric_limits<double>::infinity();

}  // namespace

at::Tensor SkippedSteps::none(at::Device device) {
  at::Tensor counts = at::zeros({4}, at::TensorOptions(device).dtype(at::kDouble));
  counts[2].fill_(never);
  return counts;
}

void SkippedSteps::count_by_operators(at::Tensor& counts, const at::Tensor& skip, std::int64_t step,
                                      const at::Tensor& device_step) {
  at::Tensor row = counts[0], longest = counts[1], first = counts[2], total = counts[3];
  const at::Tensor s = skip.to(at::kDouble);
  row.add_(1).mul_(s);
  at::maximum_out(longest, longest, row);
  const at::Tensor infinite = s.reciprocal();  // where it was not skipped
  at::minimum_out(first, first, device_step.defined() ? infinite.mul_(device_step) : infinite.mul_(double(step)));
  total.add_(s);
}

void SkippedSteps::count(const at::Tensor& skip, std::int64_t step, const at::Tensor& device_step) {
  if (!counts_.defined()) counts_ = none(skip.device());
  if (!skip.is_cpu()) return count_by_operators(counts_, skip, step, device_step);
  double* c = counts_.mutable_data_ptr<double>();  // the same by hand: small operators take a step's time on a CPU
  const bool skipped = *skip.const_data_ptr<float>() != 0;
  c[0] = skipped ? c[0] + 1 : 0;
  c[1] = std::max(c[1], c[0]);
  if (skipped && c[2] == never) c[2] = double(step);
  c[3] += skipped;
}

SkippedSteps::Seen SkippedSteps::take() {
  if (!counts_.defined()) return {};
  const at::Tensor host = counts_.cpu();
  const double* c = host.const_data_ptr<double>();
  const Seen seen{std::int64_t(c[3]), c[2] == never ? 0 : std::int64_t(c[2]), std::int64_t(c[1])};
  if (seen.total == 0) return seen;
  counts_[1].zero_();
  counts_[2].fill_(never);
  counts_[3].zero_();
  return seen;
}

}  // namespace trireme

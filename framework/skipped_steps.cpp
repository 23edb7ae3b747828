#include "framework/skipped_steps.h"

#include "framework/base/tensor.h"
#include "framework/kernels/step_guard.h"

#include <limits>

namespace trireme {
namespace {

constexpr double never = std::numeric_limits<double>::infinity();

}  // namespace

SkippedSteps::Judged SkippedSteps::judge(const at::Tensor& norm, const at::Tensor& loss, std::int64_t step,
                                         const at::Tensor& device_step) {
  if (!counts_.defined()) {
    counts_ = at::zeros({4}, loss.options());
    counts_[2].fill_(never);
  }
  const auto options = loss.options().dtype(at::kFloat);
  const Judged judged{at::empty({}, options), at::empty({}, options)};
  kernels::step_guard(
      {norm.const_data_ptr<double>(), loss.const_data_ptr<double>(), double(step),
       device_step.defined() ? device_step.const_data_ptr<double>() : nullptr, judged.norm.mutable_data_ptr<float>(),
       judged.skip.mutable_data_ptr<float>(), static_cast<kernels::SkipCounts*>(counts_.mutable_data_ptr())},
      buffer_of(loss).place);
  return judged;
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

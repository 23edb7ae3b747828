// AdamW (Loshchilov and Hutter, arXiv 1711.05101): p <- p (1 - lr wd) - lr mhat / (sqrt(vhat) + eps).
#include "framework/kernels/adamw.h"

#include "framework/base/tensor.h"
#include "framework/optim/rule.h"

namespace trireme {
namespace {

const float* pointer(const std::optional<at::Tensor>& t) { return t ? t->const_data_ptr<float>() : nullptr; }

class AdamW : public UpdateRule {
 public:
  explicit AdamW(const OptimizerConfig& c) : c_(c) {}
  int moments() const override { return 2; }

  void update(const GroupStep& s) const override {
    if (s.values.empty()) return;
    s.values[0].scalar_type() == at::kFloat ? update_f32(s) : update_any(s);
  }

 private:
  void update_f32(const GroupStep& s) const {
    std::vector<kernels::AdamWTensor> tensors;
    std::vector<at::Tensor> grads;  // keeps copies of those that are not contiguous
    for (std::size_t i = 0; i < s.values.size(); ++i) {
      grads.push_back(s.grads[i].contiguous());
      tensors.push_back({s.values[i].data_ptr<float>(), grads[i].const_data_ptr<float>(), s.first[i].data_ptr<float>(),
                         s.second[i].data_ptr<float>(), s.values[i].numel()});
    }
    kernels::AdamWJob job;
    job.tensors = tensors.data();
    job.count = std::ssize(tensors);
    job.updates = s.count.const_data_ptr<float>();
    job.device_lr = s.settings.device_lr.defined() ? s.settings.device_lr.const_data_ptr<float>() : nullptr;
    job.scale = pointer(s.scale);
    job.skip = pointer(s.skip);
    job.lr = s.settings.lr;
    job.beta1 = c_.beta1;
    job.beta2 = c_.beta2;
    job.eps = c_.eps;
    job.weight_decay = s.settings.weight_decay;
    kernels::adamw(job, buffer_of(s.first[0]).place);
  }

  void update_any(const GroupStep& s) const {
    std::vector<at::Tensor> values = s.values, grads = s.grads, first = s.first, second = s.second;
    const std::vector<at::Tensor> counts(values.size(), s.count);
    const auto go = [&](const auto& lr) {
      at::_fused_adamw_(values, grads, first, second, {}, counts, lr, c_.beta1, c_.beta2, s.settings.weight_decay,
                        c_.eps, /*amsgrad=*/false, /*maximize=*/false, s.scale, s.skip);
    };
    s.settings.device_lr.defined() ? go(s.settings.device_lr) : go(s.settings.lr);
  }

  OptimizerConfig c_;
};

const UpdateRules::Entry registered("adamw", [](const OptimizerConfig& c) { return std::make_unique<AdamW>(c); });

}  // namespace
}  // namespace trireme

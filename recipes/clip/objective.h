// What a run minimises: the loss that the configuration names, with its table and its share of the reference model.
#pragma once
#include "framework/context.h"
#include "framework/losses/contrastive.h"
#include "framework/optim/optimizer.h"
#include "recipes/clip/config.h"
#include "recipes/clip/reference.h"

#include <optional>
#include <vector>

namespace trireme::fastclip {

class Objective {
 public:
  // samples: how many are numbered.
  Objective(const LossConfig& loss, const ReferenceConfig& reference, std::int64_t samples, Context& c);

  // This rank's share and its gradients; summed over ranks they are the global ones. Collective. rows.reference_*:
  // given where there is a reference.
  LossResult operator()(const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias, const Batch& batch,
                        Context& c);
  // After the agreed finite check: the table takes the step's entries.
  void update(Context& c);
  void state(Archive& ar);

 private:
  LossResult contrastive(const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias, const Batch& batch,
                         Context& c);
  LossResult individual(const Rows& rows, const at::Tensor& old, double gamma, const Batch& batch, Context& c) const;
  Estimator estimator() const;

  LossConfig loss_;
  ReferenceConfig reference_;
  Reduction reduction_;
  std::optional<NormalizerTable> table_;
  at::Tensor entries_;  // of this step, written to the table in update()
  std::vector<std::int64_t> step_ids_;
};

}  // namespace trireme::fastclip

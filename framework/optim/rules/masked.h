// What rules out of foreach operators share: a step that may be none, decided by a scalar on the device.
#pragma once
#include "framework/optim/rule.h"

namespace trireme {

struct Masked {
  explicit Masked(const GroupStep& s);

  std::vector<at::Tensor> grads;  // divided by the scale; zeros in a step that is skipped
  at::Tensor on;                  // scalar of the parameters' type: 0 = skipped
  at::Tensor lr;                  // the same: the learning rate, 0 in a step that is skipped
};

// m <- beta m + (1 - beta) x, or m where the step is skipped.
void average_into(std::vector<at::Tensor>& m, const std::vector<at::Tensor>& x, double beta, const at::Tensor& on);

}  // namespace trireme

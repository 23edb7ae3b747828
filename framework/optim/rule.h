// The seam of the optimizer: how one group of parameters is updated by its gradients. A rule keeps nothing itself: the
// optimizer holds its moments, saves them and cuts them for ZeRO. Registered by name in its own file in rules/.
#pragma once
#include "comm/registry.h"
#include "framework/base/param.h"
#include "framework/optim/config.h"

#include <optional>
#include <vector>

namespace trireme {

// One group in one step: tensors of one type and device, in the same order.
struct GroupStep {
  std::vector<at::Tensor> values, grads;  // parameters, or this rank's slices of them
  std::vector<at::Tensor> first, second;  // moments, empty where the rule has none
  at::Tensor count;                       // f32 scalar: updates done, this one included
  GroupSettings settings;
  std::optional<at::Tensor> scale;  // f32 scalar: gradients are to be divided by it
  std::optional<at::Tensor> skip;   // f32 scalar: 1 = change nothing, whatever the gradients are. On a GPU the host does
                                    // not know it.
};

class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  virtual int moments() const = 0;  // 0 to 2 tensors kept for each parameter
  virtual void update(const GroupStep& s) const = 0;
};

using UpdateRules = Factories<UpdateRule, const OptimizerConfig&>;

}  // namespace trireme

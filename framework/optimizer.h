// AdamW and SGD over parameter groups. The update is masked on the device: a step whose gradients are not finite
// changes nothing, without the host knowing.
#pragma once
#include "comm/archive.h"
#include "framework/recipe.h"
#include "framework/train_config.h"

#include <functional>

namespace trireme {

class Optimizer {
 public:
  Optimizer(std::vector<Param> params, const OptimizerConfig& config);

  // Uses each param's grad(). `scale`: gradients are divided by it (undefined = 1). `skip`: f32 scalar on the device,
  // 1 = change nothing (undefined = 0).
  void step(const std::function<GroupSettings(std::string_view group)>& settings, const at::Tensor& scale,
            const at::Tensor& skip);
  void state(Archive& ar);
  const std::vector<Param>& params() const { return params_; }

 private:
  struct Group {
    std::string name;
    std::vector<at::Tensor> values, first, second, steps;
  };
  std::vector<Param> params_;
  OptimizerConfig config_;
  std::vector<Group> groups_;
  std::vector<at::Tensor> first_, second_;  // moments, by parameter, where the rule has them
  at::Tensor count_;                        // f32 scalar: updates done (shared by all parameters)
};

}  // namespace trireme

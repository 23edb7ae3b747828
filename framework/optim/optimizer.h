// An update rule (optim/rules) over parameter groups. The update is masked on the device: a step whose gradients are
// not finite changes nothing, without the host knowing.
#pragma once
#include "comm/archive.h"
#include "framework/base/param.h"
#include "framework/optim/config.h"

#include <functional>
#include <map>
#include <memory>
#include <span>

namespace trireme {

class UpdateRule;

class Optimizer {
 public:
  // Throws UsageError for an unknown rule.
  Optimizer(std::vector<Param> params, const OptimizerConfig& config);
  ~Optimizer();

  // ZeRO-1: this rank updates these parts alone, and keeps moments of them only. Before the first step.
  void own(std::span<const Slice> slices);

  // Uses each param's grad(). `scale`: gradients are divided by it (undefined = 1). `skip`: f32 scalar on the device,
  // 1 = change nothing (undefined = 0).
  void step(const std::function<GroupSettings(std::string_view group)>& settings, const at::Tensor& scale,
            const at::Tensor& skip);
  void state(Archive& ar);
  const std::vector<Param>& params() const { return params_; }

 private:
  // A parameter, or this rank's slice of one, and its moments where the rule has them.
  struct Part {
    Slice slice;
    at::Tensor value, first, second;
  };
  void build(std::span<const Slice> slices);
  at::Tensor part_of(const at::Tensor& whole, const Slice& slice) const;
  void archive_moment(Archive& ar, std::string_view name, const Part& part, at::Tensor& moment) const;

  std::vector<Param> params_;
  std::unique_ptr<const UpdateRule> rule_;
  bool sharded_ = false;
  std::map<std::string, std::vector<Part>> groups_;  // by Param::group
  at::Tensor count_;                                 // f32 scalar: updates done (shared by all parameters)
};

}  // namespace trireme

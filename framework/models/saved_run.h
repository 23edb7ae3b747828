// The weights of a run folder, for those who know a model by itself.
#pragma once
#include "framework/io/checkpoint.h"

#include <map>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct SavedRun {
  Snapshot snapshot;
  std::map<std::string, at::Tensor> weights;  // by name; memory of the snapshot
  // What the recipe saved as text; none: it saved no such thing.
  std::optional<std::string> text(const std::string& name) const;
};

// step: a number, newest or best. `average`: the running average in place of the weights, where the run keeps one.
// Read only: the run may be going on. DataError: no such checkpoint; UsageError: `step` is none of these.
SavedRun read_run(const std::string& path, const std::string& step, bool average);

}  // namespace trireme

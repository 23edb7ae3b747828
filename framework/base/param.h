// What is trained, and what the reducer and the optimizer know of it.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"

#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Param {
  std::string name;
  at::Tensor value;                  // leaf; the master copy (f32 or f64)
  Communicator* replicas = nullptr;  // ranks that hold this same value; null = world. Size 1 = never reduced.
  // "decay", "no_decay", or a name of the recipe's own; "frozen": not trained; "buffer": no weight but saved with them,
  // of any type (running statistics); "sparse": trained by the recipe's update() from gradients of a few rows, neither
  // reduced nor known to the optimizer, the norm and the running average.
  std::string group = "decay";
  // How it is saved, and with it its moments and its average. Left alone it follows `replicas`: once where `replicas`
  // is null, else once for each group of replicas, which only the same number of ranks can load. `rows`: this rank's
  // part of a larger parameter, which any number of ranks can load. `holders` are filled in by settle_sharing().
  Sharing sharing = {};
};

// Elements [begin, end) of a parameter, flattened.
struct Slice {
  std::size_t param;
  std::int64_t begin, end;
};

struct Step {
  std::int64_t step = 0;  // optimizer steps finished before this one
  std::int64_t epoch = 0;
  double lr = 0;  // of the schedule
};

// Hyper-parameters of one parameter group for one step.
struct GroupSettings {
  double lr = 0;
  double weight_decay = 0;
  at::Tensor device_lr = {};  // f32 scalar in place of `lr`, where that depends on what only the device knows
  std::optional<double> momentum = {};  // in place of the optimizer's, for rules that have one; then without Nesterov
};

}  // namespace trireme

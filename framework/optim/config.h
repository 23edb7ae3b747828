// The keys of the optimizer.
#pragma once
#include "framework/config/config.h"

namespace trireme {

struct OptimizerConfig {
  std::string name = "adamw";
  double lr = 5e-4, beta1 = 0.9, beta2 = 0.98, eps = 1e-6, weight_decay = 0.1, momentum = 0.9, clip_norm = 0;
  std::string schedule = "cosine";
  std::int64_t warmup = 0;
  double min_lr = 0;
  std::int64_t cooldown = 0;
  double cooldown_power = 1;
  void fields(Fields& f);
};

}  // namespace trireme

// The keys every recipe has. A recipe adds its own groups next to these.
#pragma once
#include "framework/config/config.h"
#include "framework/config/watchdog.h"
#include "framework/gradients/hook.h"
#include "framework/optim/config.h"

namespace trireme {

struct CheckpointConfig {
  std::int64_t every = 100, keep = 2;
  bool best = false, async = true;
  void fields(Fields& f);
};

struct TrainConfig {
  std::string recipe;
  std::int64_t seed = 2024, threads = 0, steps = 100, epochs = 0, batch_size = 128, accumulate = 1;
  std::string device = "auto", communicator = "auto", precision = "f32", graph = "auto";
  OptimizerConfig optimizer;
  CheckpointConfig checkpoint;
  WatchdogConfig watchdog;
  std::int64_t log_every = 10, eval_every = 0;
  double peak_tflops = 0;
  std::string init_from;
  std::vector<std::string> freeze;
  double ema = 0;
  std::string nonfinite = "stop";
  double bucket_mib = 25, first_bucket_mib = 1;
  HookConfig hook;
  std::int64_t zero = 0;
  bool overlap = true, prefetch = true, trace = false, checked = false;
  void fields(Fields& f);
};

}  // namespace trireme

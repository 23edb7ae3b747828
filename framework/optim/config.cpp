#include "framework/optim/config.h"

namespace trireme {

void OptimizerConfig::fields(Fields& f) {
  f.choice("name", name, {"adamw", "sgd"}, "update rule");
  f("lr", lr, "peak learning rate", {.min = 0});
  f("beta1", beta1, "decay of the first moment", {.min = 0, .max = 1});
  f("beta2", beta2, "decay of the second moment", {.min = 0, .max = 1});
  f("eps", eps, "added to the root of the second moment", {.min = 0});
  f("weight_decay", weight_decay, "decoupled decay; none on norms, biases and temperatures", {.min = 0});
  f("momentum", momentum, "momentum of sgd", {.min = 0, .max = 1});
  f("clip_norm", clip_norm, "largest global gradient norm; 0 = no clipping", {.min = 0});
  f.choice("schedule", schedule, {"cosine", "const"}, "learning rate after the warm-up");
  f("warmup", warmup, "steps of linear warm-up", {.min = 0});
  f("min_lr", min_lr, "learning rate at the last step of the cosine", {.min = 0});
}

}  // namespace trireme

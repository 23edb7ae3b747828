#include "framework/optim/config.h"

#include "framework/optim/rule.h"

namespace trireme {

void OptimizerConfig::fields(Fields& f) {
  const auto known = UpdateRules::names();
  const std::vector<std::string_view> rules(known.begin(), known.end());
  f.choice("name", name, rules, "update rule");
  f("lr", lr, "peak learning rate", {.min = 0});
  f("beta1", beta1, "adamw, lamb: decay of the first moment; lion: weight of the momentum in a step's sign",
    {.min = 0, .max = 1});
  f("beta2", beta2, "adamw, lamb: decay of the second moment; lion: of the momentum", {.min = 0, .max = 1});
  f("eps", eps, "adamw, lamb: added to the root of the second moment", {.min = 0});
  f("weight_decay", weight_decay, "decay; none on norms, biases and temperatures", {.min = 0});
  f("momentum", momentum, "momentum of sgd and nesterov", {.min = 0, .max = 1});
  f("clip_norm", clip_norm, "largest global gradient norm; 0 = no clipping", {.min = 0});
  f.choice("schedule", schedule, {"cosine", "const", "const_cooldown"}, "learning rate after the warm-up");
  f("warmup", warmup, "steps of linear warm-up", {.min = 0});
  f("min_lr", min_lr, "learning rate at the end of the cosine, or of the cooldown", {.min = 0});
  f("cooldown", cooldown, "const_cooldown: last steps, in which the learning rate falls to min_lr", {.min = 0});
  f("cooldown_power", cooldown_power, "const_cooldown: 1 = in a line, above: first fast, then slow",
    {.min = 0.01, .max = 100});
}

}  // namespace trireme

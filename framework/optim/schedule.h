// Learning rates by step (counted from 0).
#pragma once
#include <cstdint>
#include <string>

namespace trireme {

struct Schedule {
  std::string kind;  // cosine, const, const_cooldown; another is a bug
  double base = 0, end = 0;
  std::int64_t warmup = 0, total = 0;
  std::int64_t cooldown = 0;  // const_cooldown: steps before `total` in which base falls to `end`
  double power = 1;           // const_cooldown: of that fall

  // base*(step+1)/warmup while step < warmup, then as `kind` says: cosine from base to `end` at step `total`; base; or
  // base until the cooldown.
  double at(std::int64_t step) const;
};

// By the value it steers, not by step: `ratio` of the base while tau is at or below `threshold`. It can go up again.
struct StepThreshold {
  double threshold = 0.03, ratio = 1.0 / 3;
  double at(double base, double tau) const { return tau <= threshold ? base * ratio : base; }
};

}  // namespace trireme

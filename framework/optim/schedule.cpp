#include "framework/optim/schedule.h"

#include <cmath>
#include <numbers>

namespace trireme {

double learning_rate(std::string_view kind, double base, double min, std::int64_t warmup, std::int64_t total,
                     std::int64_t step) {
  if (step < warmup) return base * double(step + 1) / double(warmup);
  if (kind == "const" || total <= warmup) return base;
  const double done = double(step - warmup) / double(total - warmup);
  return 0.5 * (1 + std::cos(std::numbers::pi * done)) * (base - min) + min;
}

}  // namespace trireme

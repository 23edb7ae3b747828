#include "framework/optim/schedule.h"

#include "comm/error.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numbers>

namespace trireme {
namespace {

double cosine(const Schedule& s, std::int64_t step) {
  if (s.total <= s.warmup) return s.base;
  const double done = double(step - s.warmup) / double(s.total - s.warmup);
  return 0.5 * (1 + std::cos(std::numbers::pi * done)) * (s.base - s.end) + s.end;
}

double cooldown(const Schedule& s, std::int64_t step) {
  const std::int64_t begin = s.total - s.cooldown;
  if (step < begin || s.cooldown == 0) return s.base;
  const double left = std::max(0.0, 1 - double(step - begin) / double(s.cooldown));
  return std::pow(left, s.power) * (s.base - s.end) + s.end;
}

const std::map<std::string, std::function<double(const Schedule&, std::int64_t)>> kinds = {
    {"cosine", cosine},
    {"const", [](const Schedule& s, std::int64_t) { return s.base; }},
    {"const_cooldown", cooldown}};

}  // namespace

double Schedule::at(std::int64_t step) const {
  const auto found = kinds.find(kind);
  if (found == kinds.end()) throw Error(ExitCode::bug, "schedule", "no kind '" + kind + "'");
  return step < warmup ? base * double(step + 1) / double(warmup) : found->second(*this, step);
}

}  // namespace trireme

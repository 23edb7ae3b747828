#include "framework/models/dit/level_modulations.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace trireme {

Conditioning LevelModulations::at(Denoiser& model, const Conditioning& c, const std::vector<double>& levels,
                                  double sigma) {
  const auto level = std::ranges::find(levels, sigma);
  if (level == levels.end() || at::GradMode::is_enabled()) return c;
  const auto same = [&](const Table& t) {
    return t.pooled.is_same(c.pooled) && t.guidance.is_same(c.guidance) && t.levels == levels;
  };
  auto found = std::ranges::find_if(tables_, same);
  if (found == tables_.end()) {
    constexpr std::size_t most = 4;  // both conditions of a picture and of its sketch
    if (tables_.size() == most) tables_.pop_back();
    const at::Tensor t = at::tensor(levels, at::kDouble).to(model.device(), at::kFloat);
    tables_.push_front({c.pooled, c.guidance, levels, model.modulations(t, c)});
    found = tables_.begin();
  }
  Conditioning with = c;
  if (found->rows.defined()) with.modulation = found->rows[level - levels.begin()];
  return with;
}

}  // namespace trireme

#include "recipes/supergen/tile_rope.h"

#include "framework/base/tensor.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme {

RopeTable axial_rope(const std::array<TileAxis, 3>& axes, const std::vector<std::int64_t>& channels,
                     at::Device device) {
  const auto f64 = at::TensorOptions().dtype(at::kDouble);
  std::vector<std::int64_t> grid;
  for (const TileAxis& a : axes) grid.push_back(std::ssize(a.positions));
  std::vector<at::Tensor> angles;
  for (std::size_t a = 0; a < 3; ++a) {
    const at::Tensor i = at::arange(channels[a] / 2, f64) * (2.0 / double(channels[a]));
    const at::Tensor one =
        at::outer(at::tensor(axes[a].positions, f64), at::pow(axes[a].theta, i.neg()));  // [positions, pairs]
    std::vector<std::int64_t> shape = {1, 1, 1, one.size(1)};
    shape[a] = one.size(0);
    angles.push_back(to_device(one, device).view(shape).expand({grid[0], grid[1], grid[2], one.size(1)}));
  }
  const at::Tensor all = at::cat(angles, -1).flatten(0, 2);
  return {all.cos().to(at::kFloat), all.sin().to(at::kFloat)};
}

std::array<TileAxis, 3> tile_axes(const std::string& mode, const Canvas& canvas, const CanvasWindow& w,
                                  std::int64_t frames, const DenoiserInfo& model) {
  std::array<TileAxis, 3> axes;
  for (std::int64_t f = 0; f < frames; ++f) axes[0].positions.push_back(double(f));
  axes[0].theta = model.theta;
  const auto along = [&](const CanvasAxis& axis, std::int64_t start) {
    const double patch = double(model.patch), tokens = double(axis.size()) / patch,
                 grown = double(axis.size()) / double(axis.window());
    TileAxis a{{}, mode == "ntk" ? model.theta * std::clamp(grown * grown, 1.0, 64.0) : model.theta};
    for (std::int64_t i = 0; i < axis.window() / model.patch; ++i) {
      const double at = std::fmod(double(start) / patch + double(i), tokens);
      a.positions.push_back(mode == "interp" ? at / grown : at);
    }
    return a;
  };
  axes[1] = along(canvas.rows(), w.row);
  axes[2] = along(canvas.columns(), w.column);
  return axes;
}

}  // namespace trireme

// Rotations of a tile that knows where on its canvas it lies.
#pragma once
#include "framework/models/dit/canvas.h"
#include "framework/models/dit/denoiser.h"

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Angles position * theta^(-2i/channels) of the axes frame, row, column, with a base and positions of each axis's own.
struct TileAxis {
  std::vector<double> positions;
  double theta = 1e4;
};
RopeTable axial_rope(const std::array<TileAxis, 3>& axes, const std::vector<std::int64_t>& channels, at::Device device);

// extend: positions on the canvas, in tokens, which wrap with the window. ntk: those, and along rows and columns theta
// times clamp((canvas / window)^2, 1, 64). interp: those times window / canvas.
std::array<TileAxis, 3> tile_axes(const std::string& mode, const Canvas& canvas, const CanvasWindow& w,
                                  std::int64_t frames, const DenoiserInfo& model);

}  // namespace trireme

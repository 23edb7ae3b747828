// A stand-in for a model and a canvas, for tests of refinement by tiles.
#pragma once
#include "framework/models/dit/canvas.h"
#include "recipes/supergen/refiner.h"

#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace trireme::test {

inline CanvasConfig sizes(std::array<std::int64_t, 2> size, std::array<std::int64_t, 2> window,
                          std::int64_t loop_step) {
  CanvasConfig c;
  c.size = size, c.window = window, c.loop_step = loop_step;
  return c;
}

inline RefinerConfig cached(double base, std::int64_t steps = 20) {
  RefinerConfig c;
  c.gate.base = base, c.gate.steps = steps;
  return c;
}

// The stand-in of tests/reference/make_supergen_vectors.py: what it says depends on the place within the tile.
inline at::Tensor fake_model(const at::Tensor& tile, double sigma) {
  const auto along = [&](std::int64_t dim, double by) {
    std::vector<std::int64_t> shape(std::size_t(tile.dim()), 1);
    shape[std::size_t(dim)] = tile.size(dim);
    return (at::arange(tile.size(dim), at::kDouble) * by).view(shape);
  };
  const at::Tensor phase = along(1, 1.0) + along(3, 0.7) + along(4, 0.4), x = tile.to(at::kDouble);
  return (0.6 * x + 0.4 * sigma * at::sin(0.9 * x + phase) + 0.1 * x.mean()).to(tile.scalar_type());
}

inline at::Tensor start_of(std::int64_t samples, std::int64_t rows, std::int64_t columns) {
  const at::Tensor p = at::arange(3, at::kDouble).view({3, 1, 1}), r = at::arange(rows, at::kDouble).view({1, rows, 1}),
                   c = at::arange(columns, at::kDouble).view({1, 1, columns});
  const at::Tensor x = at::sin(1.3 * p + 0.37 * r) + at::cos(0.21 * c * (p + 1)) + 0.3 * at::sin(1.9 * r + 2.3 * c + p);
  std::vector<at::Tensor> all;
  for (std::int64_t b = 0; b < samples; ++b) all.push_back((x * (1 + 0.1 * double(b))).unsqueeze(1));
  return at::stack(all).to(at::kFloat);
}

struct Refined {
  at::Tensor canvas;
  std::vector<std::string> map, second_map;
  std::vector<double> k, thresholds;
  std::vector<RefinerCounts> counts;
};

inline Refined refined(Communicator& comm, const CanvasConfig& shape, const RefinerConfig& config,
                       std::int64_t samples = 1, at::ScalarType wire = at::kFloat) {
  const Canvas canvas(shape);
  Refiner refiner(config, canvas, comm, samples);
  Refined out;
  at::Tensor x = start_of(samples, shape.size[0], shape.size[1]);
  const std::int64_t steps = config.gate.steps;
  for (std::int64_t i = 0; i < steps; ++i) {
    const double sigma = 1 - double(i) / double(steps), to = i + 1 < steps ? 1 - double(i + 1) / double(steps) : 0;
    const at::Tensor y =
        refiner.predict(x, i, wire, [&](const at::Tensor& tiles, std::span<const Refiner::Tile> which) {
          std::vector<at::Tensor> each;
          for (std::int64_t n = 0; n < tiles.size(0); ++n)
            each.push_back(fake_model(tiles.narrow(0, n, 1), which[std::size_t(n)].half == 0 ? sigma : sigma / 2));
          return at::cat(each);
        });
    x = x + (to - sigma) * y;
    out.counts.push_back(refiner.counts());
  }
  out.canvas = x, out.map = refiner.map(0), out.second_map = refiner.map(samples - 1);
  for (std::int64_t t = 0; t < canvas.tiles(); ++t)
    out.k.push_back(refiner.gate(0).k(t)), out.thresholds.push_back(refiner.gate(0).threshold(t));
  return out;
}

}  // namespace trireme::test

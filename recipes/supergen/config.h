// Keys of the method `supergen`.
#pragma once
#include "framework/config/config.h"
#include "framework/models/dit/canvas.h"
#include "recipes/supergen/refiner.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

struct SupergenCacheConfig {
  std::string base = "fit", fit, mode = "top_selective", gate = "fixed", pattern;
  std::int64_t ret_steps = 5, every = 5;
  double a = 0.5, skip = 0.5;
  double fitted = 0;  // what `fit` says, once take_fit() has read it
  void fields(Fields&);
};

struct SupergenConfig {
  std::vector<std::int64_t> window = {0, 0}, sketch = {0, 0};
  std::int64_t loop_step = 16, shift_every = 1, refine_steps = -1, batch = 1;
  std::string modulus = "per_axis", windows = "torus", tile_rope = "local", upscale = "pixel_bicubic",
              on_bad_size = "reject";
  std::string unit = "tile", gates = "replicated";
  bool redistribute = true;
  SupergenCacheConfig cache;
  void fields(Fields&);

  // Of `steps`, those that refine.
  std::int64_t refining(std::int64_t steps) const;
  // Sizes in latent pixels; pixels a latent pixel's side for messages.
  CanvasConfig canvas(std::array<std::int64_t, 2> size, std::array<std::int64_t, 2> window, std::int64_t factor) const;
  // Of a job whose refinement has `refining` steps. Reads the file of a pattern. DataError: it is not there.
  RefinerConfig refiner(std::int64_t refining, double guidance) const;
  bool fits() const { return cache.base == "fit" && cache.fit.empty(); }
  // Reads `cache.fit`, if it is named. Throws as fitted_base.
  void take_fit();
  // Why thresholds cannot be fitted to `refining` steps; empty: they can.
  std::string unfitted(std::int64_t refining) const;
};

}  // namespace trireme

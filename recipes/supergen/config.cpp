#include "recipes/supergen/config.h"

#include "comm/error.h"
#include "recipes/supergen/fitted.h"

#include <charconv>
#include <cmath>
#include <fstream>

namespace trireme {
namespace {

// Below 0: no number.
double threshold_of(const std::string& text) {
  double v = -1;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), v);
  return end.ec == std::errc() && end.ptr == text.data() + text.size() && std::isfinite(v) ? v : -1;
}

}  // namespace

void SupergenCacheConfig::fields(Fields& f) {
  f("base", base,
    "threshold of a tile's gathered error below which its prediction is reused: a number, off, or fit: every tile is "
    "computed, and the report "
    "names the number that would have reused `skip`");
  f("fit", fit, "report.json of a run with base: fit: the threshold that it found for `skip`, in place of base");
  f("skip", skip, "share of all tile evaluations that is to be reused, for base: fit and for fit",
    {.min = 0, .max = 1});
  f("ret_steps", ret_steps, "first refinement steps in which every tile is computed; three are in any case",
    {.min = 0});
  f("a", a, "by how much the tiles whose predictions vary most over steps get a higher threshold",
    {.min = 0, .max = 2});
  f.choice("mode", mode, {"top_selective", "max_min_adjust"},
           "top_selective: the tile that varies most gets (1 + a), the next (1 + a/2); max_min_adjust: the most (1 + "
           "a), the least (1 - a/2)");
  f("every", every, "steps between two rankings of the tiles", {.min = 1});
  f.choice("gate", gate, {"fixed", "release"}, "release: the first release's defect, for comparison");
  f("pattern", pattern,
    "file of a forced pattern, a line a step with # for a computed tile and . for a reused one; empty: the gate "
    "decides");
  f.require(base == "fit" || base == "off" || threshold_of(base) >= 0, "base", "'" + base + "' is no threshold",
            "a number from 0 on, off, or fit");
  f.require(fit.empty() || base == "fit", "fit", "base is " + base + " already", "leave one out");
}

void SupergenConfig::fields(Fields& f) {
  f("window", window, "rows and columns of a tile in latent pixels; 0: the side that the model was trained for");
  f("sketch", sketch,
    "height and width of the first stage in pixels; 0: the size over the number of tiles along the side that has "
    "fewer");
  f("refine_steps", refine_steps,
    "last steps of the schedule, done by tiles; -1: nine tenths of the steps. 0: the sketch, scaled up. All: no "
    "sketch. With one, noise comes from the seed, never from the latents of embeds");
  f("loop_step", loop_step, "shifts in which a window passes its own length", {.min = 1, .max = 4096});
  f("shift_every", shift_every, "steps between shifts; 0: windows stay", {.min = 0});
  f.choice("modulus", modulus, {"per_axis", "shared"},
           "shifts start again when an axis has come round; shared: after loop_step, as first released");
  f.choice("windows", windows, {"torus", "half_overlap", "clamped"},
           "torus: windows wrap at the edges; half_overlap: four times as many, averaged; clamped: none wraps, those "
           "at the edges overlap");
  f.choice(
      "tile_rope", tile_rope, {"local", "extend", "ntk", "interp"},
      "positions of a tile: from 0; those on the canvas; those with a higher base of the rotation; those scaled down");
  f.choice("upscale", upscale, {"pixel_bicubic", "latent_bicubic"}, "how the sketch is scaled up");
  f.choice("on_bad_size", on_bad_size, {"reject", "pad"},
           "a size that windows do not tile; pad: cover it with windows that overlap");
  f("redistribute", redistribute,
    "give the tiles that are computed to the ranks in turn; else each rank keeps its own");
  f.choice("unit", unit, {"tile", "half"},
           "what a rank computes at a time: a tile with both halves of guidance, or one half");
  f("batch", batch,
    "most tiles in one forward, of all pictures of the engine's batch. 1: the picture is the same to the bit on any "
    "number of ranks",
    {.min = 1, .max = 4096});
  f.choice(
      "gates", gates, {"replicated", "checked", "broadcast"},
      "who decides what is reused: every rank; every rank, and they compare; rank 0, for ranks whose devices differ");
  f.group("cache", cache, "tiles that need not be computed");
  const auto pair = [&](const std::vector<std::int64_t>& v) {
    return v.size() == 2 && v[0] >= 0 && v[1] >= 0 && (v[0] == 0) == (v[1] == 0);
  };
  f.require(pair(window), "window", "a window is two numbers above 0, or both 0", "window: [90, 160], rows first");
  f.require(pair(sketch), "sketch", "a sketch is two numbers above 0, or both 0", "sketch: [720, 1280], height first");
}

std::int64_t SupergenConfig::refining(std::int64_t steps) const {
  if (refine_steps > steps)
    throw UsageError("supergen.refine_steps", std::to_string(refine_steps) + " of " + std::to_string(steps) + " steps",
                     "at most all, which means that there is no sketch");
  return refine_steps < 0 ? (steps * 9 + 5) / 10 : refine_steps;
}

CanvasConfig SupergenConfig::canvas(std::array<std::int64_t, 2> size, std::array<std::int64_t, 2> tile,
                                    std::int64_t factor) const {
  CanvasConfig c;
  c.size = size, c.window = tile, c.loop_step = loop_step, c.pixels_a_unit = factor;
  c.shared_modulus = modulus == "shared", c.pad = on_bad_size == "pad";
  if (windows == "half_overlap") c.windows = CanvasConfig::Windows::half_overlap;
  if (windows == "clamped") c.windows = CanvasConfig::Windows::clamped;
  return c;
}

void SupergenConfig::take_fit() {
  if (!cache.fit.empty()) cache.fitted = fitted_base(cache.fit, cache.skip);
}

std::string SupergenConfig::unfitted(std::int64_t refining) const {
  // As the gate: these first steps are computed in any case, and so is the last.
  const std::int64_t may = refining - 1 - std::max<std::int64_t>(3, cache.ret_steps);
  if (may > 0 && double(may) >= cache.skip * double(refining)) return "";
  return "of " + std::to_string(refining) + " refinement steps " + std::to_string(std::max<std::int64_t>(0, may)) +
         " may reuse tiles: no threshold reuses " + std::to_string(cache.skip).substr(0, 4) +
         " of all; take more steps, or lower cache.skip or cache.ret_steps";
}

RefinerConfig SupergenConfig::refiner(std::int64_t steps, double guidance) const {
  RefinerConfig r;
  r.gate.steps = steps, r.gate.ret_steps = cache.ret_steps, r.gate.a = cache.a, r.gate.every = cache.every;
  r.gate.base = cache.fit.empty() ? std::max(0.0, threshold_of(cache.base)) : cache.fitted;
  if (cache.mode == "max_min_adjust") r.gate.mode = TileGateConfig::Mode::max_min_adjust;
  r.gate.release = cache.gate == "release";
  r.cache = cache.base != "off", r.record = fits();
  r.shift_every = shift_every, r.redistribute = redistribute;
  r.batch = batch, r.one_window = tile_rope != "local";
  if (gates == "checked") r.gates = RefinerConfig::Gates::checked;
  if (gates == "broadcast") r.gates = RefinerConfig::Gates::broadcast;
  if (unit == "half") r.halves = 2, r.guidance = guidance;
  if (cache.pattern.empty()) return r;
  std::ifstream in(cache.pattern);
  if (!in)
    throw DataError(cache.pattern, "cannot be read", "name a file of a line a step, or leave cache.pattern empty");
  for (std::string line; std::getline(in, line);) {
    if (line.find_first_not_of("#.") != std::string::npos)
      throw DataError(cache.pattern + ":" + std::to_string(r.pattern.size() + 1), "a line is made of # and .");
    r.pattern.push_back(line);
  }
  return r;
}

}  // namespace trireme

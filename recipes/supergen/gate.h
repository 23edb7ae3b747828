// Which tiles of a refinement step are computed and which are taken over from before (SuperGen, arXiv 2508.17756, in
// the form its authors fixed later). A tile's prediction is reused as y = x + R while an estimate E of the error so
// gathered stays below a threshold:
//   E += k mean|x - x_p| / mean|y_p|,   k = mean|y_p - y_pp| / mean|x_p - x_pp|,
// where x_p, x_pp are the last two inputs and y_p, y_pp the last two COMPUTED predictions at the window. k belongs to
// the tile and is taken afresh only in a step after one in which the tile was computed; E belongs to places of the
// canvas, so that a window that moves takes the mean of what lies below it. Host code: every rank decides alike from
// the same numbers.
#pragma once
#include "comm/archive.h"
#include "framework/models/dit/canvas.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace trireme {

struct TileGateConfig {
  std::int64_t steps = 45;  // refinement steps in all; the last is computed
  std::int64_t ret_steps =
      5;            // so are these first ones, and the first three in any case: until then k has no histories
  double base = 0;  // threshold of an ordinary tile; 0: never reuse
  // Every `every` steps the tiles are ranked by the standard deviation over steps of their mean |prediction|.
  // top_selective: the largest has base (1 + a), the next base (1 + a/2). max_min_adjust: the largest base (1 + a), the
  // least base (1 - a/2).
  enum class Mode { top_selective, max_min_adjust } mode = Mode::top_selective;
  double a = 0.5;
  std::int64_t every = 5;
  bool release = false;  // the first release's defect, for comparison: k is taken every step, also from predictions
                         // that were reused
};

// Means over one window; f32.
struct TileMeans {
  float moved;      // |x - x_p|
  float moved_p;    // |x_p - x_pp|
  float changed_p;  // |y_p - y_pp|
  float y_p;        // |y_p|
};

// What one step of a run without reuse saw, for `fit_base`.
struct GateRecord {
  std::vector<CanvasWindow> windows;
  std::vector<TileMeans> means;  // none in the steps that are computed in any case
  std::vector<float> predicted;  // mean |y| of this step
};

class TileGate {
 public:
  TileGate(const TileGateConfig& config, const Canvas& canvas);
  // Is the decision of this step one that needs means?
  bool reads(std::int64_t step) const;
  // Must all predictions so far have been told? Also where thresholds are set anew.
  bool ranks(std::int64_t step) const { return step > 0 && step % config_.every == 0; }
  // For each window: compute it? Once a step, in the order of steps. `means`: one a window, none if !reads(step).
  std::vector<bool> decide(std::int64_t step, std::span<const CanvasWindow> windows, std::span<const TileMeans> means);
  // Mean |prediction| of each window of an earlier step, before the next `decide` that reads or ranks.
  void predicted(std::span<const CanvasWindow> windows, std::span<const float> means);

  double k(std::int64_t tile) const { return tiles_[std::size_t(tile)].k; }  // 0: none yet
  double threshold(std::int64_t tile) const { return tiles_[std::size_t(tile)].threshold; }
  double error(const CanvasWindow& w) const;  // mean E
  void state(Archive& ar);

 private:
  struct PerTile {
    double k = 0, threshold = 0;
    std::int64_t computed = -2;  // last step in which it was
    std::int64_t count = 0;      // Welford, over steps
    double mean = 0, squares = 0;
    double deviation() const;
  };
  bool compute(std::int64_t step, const CanvasWindow& w, const TileMeans& m);
  void rank();
  template <class F>
  void each_place(const CanvasWindow& w, const F& f);

  TileGateConfig config_;
  std::int64_t rows_, columns_, window_rows_, window_columns_;
  std::vector<float> error_;  // [rows, columns]
  std::vector<float> cover_;  // of this step: windows over each place, since each adds to E
  std::vector<PerTile> tiles_;
};

// The threshold with which about `skip` of all tile evaluations of these runs (one vector of `steps` records each) are
// reused: found by replaying the gate, so on the histories of a run without reuse. None if no threshold reuses that
// many.
std::optional<double> fit_base(TileGateConfig config, const Canvas& canvas,
                               std::span<const std::vector<GateRecord>> runs, double skip);
// The share that a replay reuses at config.base.
double replayed_skip(const TileGateConfig& config, const Canvas& canvas, std::span<const std::vector<GateRecord>> runs);

}  // namespace trireme

// Refinement of a canvas by tiles on any number of ranks (SuperGen's second stage). Every rank holds the whole canvas
// and all histories; a step shifts the windows, decides which tiles to compute, spreads those over the ranks, and puts
// the predictions of all together with ONE all-gather. So histories need no exchange of their own, and it costs nothing
// to give a tile to another rank from step to step.
#pragma once
#include "comm/communicator.h"
#include "framework/models/dit/canvas.h"
#include "recipes/supergen/gate.h"

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct RefinerConfig {
  TileGateConfig gate;
  bool cache = true;             // false: every tile is computed in every step, and no histories are kept
  std::int64_t shift_every = 1;  // steps; 0: windows stay
  bool redistribute =
      true;  // active tiles in turn over the ranks; false: each rank keeps a run of ceil(tiles / ranks) of them
  // replicated: each rank decides for itself; checked: and they compare; broadcast: rank 0 decides, for ranks whose
  // devices differ in kind.
  enum class Gates { replicated, checked, broadcast } gates = Gates::replicated;
  std::int64_t halves = 1;  // 2: the two halves of guidance are units of work of their own ...
  double guidance = 1;      // ... put together as v_u + guidance (v_c - v_u)
  // Most tiles in one forward. Above 1 last bits may depend on the number of ranks: a product's sums depend on its
  // rows.
  std::int64_t batch = 1;
  bool one_window = false;  // tiles of a forward lie at one place, since positions on the canvas are the forward's
  bool record = false;      // keep what `fit_base` needs
  // Forced decisions instead of the gate's, one word a step, '#' a computed tile and '.' a reused one, in the windows'
  // order: of every sample.
  std::vector<std::string> pattern;
};

// Of one step, on all ranks alike.
struct RefinerCounts {
  std::int64_t tiles = 0, computed = 0, gathers = 0;
  std::int64_t payload = 0;  // values that somebody needed
  std::int64_t wire = 0;     // values in the all-gather, with padding
};

class Refiner {
 public:
  // Half 0 is the conditional one, or all of it with one half.
  struct Tile {
    CanvasWindow window;
    std::int64_t sample, half;
  };
  // [n, C, F, rows, columns] of n tiles, of one half -> the same, of any type.
  using Model = std::function<at::Tensor(const at::Tensor& tiles, std::span<const Tile> which)>;

  // `ranks` outlives this. Throws UsageError for a pattern that does not fit.
  Refiner(const RefinerConfig& config, const Canvas& canvas, Communicator& ranks, std::int64_t samples);
  // Collective. x f32 [B, C, F, H, W], the same on all ranks -> the prediction, f32 of its shape, the same on all ranks
  // to the bit. `wire`: type in which predictions travel, also on one rank, so that their number changes no bit. Steps
  // come in order from 0.
  at::Tensor predict(const at::Tensor& x, std::int64_t step, at::ScalarType wire, const Model& model);

  const RefinerCounts& counts() const { return counts_; }
  const TileGate& gate(std::int64_t sample) const { return gates_[std::size_t(sample)]; }
  // One line a step of '#' and '.', as `pattern` takes them.
  const std::vector<std::string>& map(std::int64_t sample) const { return maps_[std::size_t(sample)]; }
  const std::vector<GateRecord>& records(std::int64_t sample) const { return records_[std::size_t(sample)]; }
  // Histories and gates. `x`: any tensor of the canvas' shape and device, for the shapes of those not there yet.
  void state(Archive& ar, const at::Tensor& x);

 private:
  struct Unit {
    std::int64_t sample, window, half;
    int rank = 0;
    std::int64_t slot = 0;
  };
  using Flags = std::vector<std::vector<bool>>;  // [sample][window]: computed?
  Flags decide(const at::Tensor& x, std::int64_t step, const std::vector<CanvasWindow>& windows, std::int64_t shift);
  std::vector<TileMeans> means_of(const at::Tensor& x, std::int64_t sample, const std::vector<CanvasWindow>& windows,
                                  std::int64_t shift);
  void tell_predictions();
  void agree_on(Flags& flags);
  std::vector<Unit> share_out(const Flags& flags);
  at::Tensor exchange(const at::Tensor& x, const std::vector<Unit>& units, const std::vector<CanvasWindow>& windows,
                      at::ScalarType wire, const Model& model);
  void compute(const at::Tensor& x, std::vector<Unit> mine, const std::vector<CanvasWindow>& windows,
               const Model& model, const at::Tensor& to);
  at::Tensor compose(const at::Tensor& x, const Flags& flags, const std::vector<Unit>& units,
                     const at::Tensor& gathered, const std::vector<CanvasWindow>& windows, std::int64_t shift);
  void remember(const at::Tensor& x, const at::Tensor& y, const Flags& flags, const std::vector<CanvasWindow>& windows,
                std::int64_t shift);
  at::Tensor computed_mask(const Flags& flags, const std::vector<CanvasWindow>& windows, const at::Tensor& like);

  RefinerConfig config_;
  Canvas canvas_;
  Communicator& ranks_;
  std::vector<TileGate> gates_;
  at::Tensor x_p_, x_pp_, y_p_, y_pp_, residual_;  // f32 [B, C, F, H, W]
  // Mean |prediction| by window, on the device until the gate asks for it.
  struct Pending {
    at::Tensor means;  // f32 [B, tiles]
    std::vector<CanvasWindow> windows;
  };
  std::vector<Pending> pending_;
  std::vector<std::vector<std::string>> maps_;
  std::vector<std::vector<GateRecord>> records_;
  RefinerCounts counts_;
};

}  // namespace trireme

// Rotary positions beyond the size a model was trained at: what each pair of channels turns by, and how its logits are
// sharpened. Position interpolation (Chen et al. 2023), NTK (bloc97 2023), YaRN (Peng et al. 2023, eq. 17-22),
// DyPE (arXiv 2510.20766) and TIDE's dynamic temperature (arXiv 2603.08928). All arithmetic is f64.
#pragma once
#include "framework/models/dit/denoiser.h"

#include <cstdint>
#include <vector>

namespace trireme {

enum class Positions {
  none,  // as trained
  pi,    // positions divided by S
  ntk,   // theta grows
  yarn,  // slow pairs are interpolated, fast ones are not
};

struct RopeScaling {
  Positions positions = Positions::yarn;
  bool dype = true;                 // of ntk and yarn: strength follows the time
  bool dynamic_temperature = true;  // TIDE's; off: yarn's constant temperature, none with other positions
  bool normalized = false;          // the temperature's frequency: of position in the axis (1 first, 0 last), not raw
  double alpha_low = 0.6, alpha_high = 0.2;  // exponent of the time at frequencies 0 and 1

  bool follows_time() const {
    return dynamic_temperature || (dype && (positions == Positions::ntk || positions == Positions::yarn));
  }
};

// One axis (rows or columns) of `dim` channels, trained on `trained` positions and used on scale * trained.
struct RopeAxis {
  std::int64_t dim = 0;
  double theta = 1e4;
  double trained = 64;
  double scale = 1;  // S; at most 1: the axis is left alone
};

// A pair of channels 2i, 2i+1: `frequency` radians a token, and the factor of its cosine and sine: the logits of a
// query and a key that both carry it are multiplied by gain^2 = 1/tau.
struct RopePair {
  double frequency = 0, gain = 1;
};

// time: sigma after the shift, 1 = noise. dim/2 pairs.
std::vector<RopePair> scaled_axis(const RopeAxis& axis, const RopeScaling& scaling, double time);

// YaRN's temperature 1 / (0.1 ln S + 1)^2: of the logits of a sequence S times as long.
double least_temperature(double scale);
// TIDE's tau(t, f) = 1 - (1 - tau_min) t^alpha(f).
double temperature(double scale, double frequency, const RopeScaling& scaling, double time);

// Pairs below `low` keep their frequency, those above `high` are interpolated, with a ramp between.
struct YarnRamp {
  double low, high;
};
YarnRamp yarn_ramp(const RopeAxis& axis, bool dype, double time);

// The axes frame, row, column of a grid of tokens; the scale of the latter two is (largest position + 1) / trained
// side. A frame's is 1: TIDE leaves the first axis alone.
std::vector<RopeAxis> rope_axes(const DenoiserInfo& model, const Grid& grid, const Offsets& offsets = {});
// Tables in place of Denoiser::rope's. `text_tokens` rows of position 0 that carry the same gains; 0: text is not
// rotated. Computed in f64 on the host, rounded to f32 once.
RopeTables scaled_rope(const DenoiserInfo& model, const Grid& grid, std::int64_t text_tokens,
                       const RopeScaling& scaling, double time, at::Device device, const Offsets& offsets = {});
// f32 [head_dim / 2], gain(to) / gain(from): what keys that were rotated and cached at time `from` lack at `to`, where
// only the temperature changes (positions do too with DyPE: then cache keys before the rotation).
at::Tensor gain_ratio(const DenoiserInfo& model, const Grid& grid, const RopeScaling& scaling, double from, double to,
                      at::Device device);

// TIDE's text anchor beta = ln(N / N_trained): image keys grow in number, text keys do not; e^beta restores the ratio
// of their shares of the softmax.
double text_anchor(std::int64_t image_tokens, std::int64_t trained_tokens);

}  // namespace trireme

#include "framework/models/dit/tide_settings.h"

#include "comm/error.h"

#include <algorithm>
#include <cmath>

#include <c10/util/BFloat16.h>

namespace trireme {
namespace {

double side(std::int64_t tokens, const DenoiserInfo& model) {
  return static_cast<double>(tokens) / static_cast<double>(model.base_side);
}

}  // namespace

void TideSettings::fields(Fields& f) {
  f("text_anchor", text_anchor_, "logits of text keys gain ln(N / tokens trained)");
  f("dtc", dtc_, "dynamic temperature of the rotary channels; off: YaRN's constant one, none with other positions");
  f.choice("freq_mode", freq_mode_, {"raw", "normalized"},
           "what the temperature's exponent follows: a pair's frequency, or its place in the axis (1 first, 0 last)");
  f.choice("positions", positions_, {"none", "pi", "ntk", "yarn"},
           "how rotary positions reach beyond the trained side");
  f("dype", dype_, "ntk and yarn fade as noise goes");
  f("mu_mode", mu_mode_, "dynamic shift of time, as the job's key of that name; job: what that says");
  f("alpha_low", alpha_low_, "exponent of time at frequency 0", {.min = 0, .max = 100});
  f("alpha_high", alpha_high_, "exponent of time at frequency 1", {.min = 0, .max = 100});
  f("gate_px", gate_px_, "pixels up to which text is not anchored; 0: those trained (FLUX 1048576)", {.min = 0});
  f.choice("beta_round", beta_round_, {"none", "bf16"}, "rounding of the anchor; bf16: the authors' mask");
  f.choice("attention", attention_, {"lse_merge", "bias"}, "text and image apart, merged; or a mask (oracle)");
  f("proportional", proportional_, "all logits times sqrt(ln N / ln tokens trained) (arXiv 2306.08645); a baseline");
  f.require(mu_mode_ == "job" || is_mu_mode(mu_mode_), "mu_mode", "'" + mu_mode_ + "' is no way to shift time",
            "job, none, linear, sqrt, log, clamp, or a number");
}

void TideSettings::prepare(const Denoiser& model) {
  const DenoiserInfo& info = model.info();
  if (text_anchor_ && !info.joint_text)
    throw UsageError(
        "tide.text_anchor",
        "layout " + info.layout + " has text in cross-attention alone, where a constant of all keys cancels",
        "tide.text_anchor=false; the other parts work");
  device_ = model.device();
  text_turns_ = !info.rope_axes.empty() && model.rope({1, 1, 1}, 1).text.cos.defined();
}

FlowShift TideSettings::shift(FlowShift job) const {
  if (mu_mode_ != "job") job.mu_mode = mu_mode_;
  return job;
}

RopeScaling TideSettings::scaling() const {
  RopeScaling s;
  s.positions = positions_ == "pi"    ? Positions::pi
                : positions_ == "ntk" ? Positions::ntk
                                      : (positions_ == "yarn" ? Positions::yarn : Positions::none);
  s.dype = dype_;
  s.dynamic_temperature = dtc_;
  s.normalized = freq_mode_ == "normalized";
  s.alpha_low = alpha_low_;
  s.alpha_high = alpha_high_;
  return s;
}

double TideSettings::text_bias(const DenoiserInfo& model, const Grid& grid) const {
  const std::int64_t token = model.patch * model.latent_factor, trained = model.base_side * token;
  const std::int64_t gate = gate_px_ ? gate_px_ : trained * trained;
  if (!text_anchor_ || grid.rows * grid.columns * token * token <= gate) return 0;
  const double beta = text_anchor(grid.rows * grid.columns, model.base_side * model.base_side);
  return beta_round_ == "bf16" ? static_cast<float>(c10::BFloat16(static_cast<float>(beta))) : beta;
}

double TideSettings::logit_scale(const DenoiserInfo& model, const Grid& grid, double sigma) const {
  double factor = 1;
  const double tokens = static_cast<double>(grid.rows * grid.columns);
  const double trained = static_cast<double>(model.base_side * model.base_side);
  if (proportional_ && tokens > trained) factor = std::sqrt(std::log(tokens) / std::log(trained));
  if (!model.rope_axes.empty()) return factor;
  // No channels to scale: one temperature for all, of the mean side, as of the lowest frequency.
  const double scale = std::sqrt(std::max(side(grid.rows, model), 1.0) * std::max(side(grid.columns, model), 1.0));
  if (dtc_) return factor / temperature(scale, 0, scaling(), sigma);
  return positions_ == "yarn" ? factor / least_temperature(scale) : factor;
}

DitHooks TideSettings::hooks(const Denoiser& model, const Grid& grid, std::int64_t text_tokens, double sigma) {
  const DenoiserInfo& info = model.info();
  DitHooks hooks;
  hooks.text_bias = text_bias(info, grid);
  hooks.form = attention_ == "bias" ? DitHooks::Bias::bias : DitHooks::Bias::lse_merge;
  hooks.logit_scale = logit_scale(info, grid, sigma);
  const bool larger = side(grid.rows, info) > 1 || side(grid.columns, info) > 1;
  if (info.rope_axes.empty() || !larger || (positions_ == "none" && !dtc_)) return hooks;
  const std::array<std::int64_t, 4> size{grid.frames, grid.rows, grid.columns, text_turns_ ? text_tokens : 0};
  if (size != size_ || scaling().follows_time()) tables_ = scaled_rope(info, grid, size[3], scaling(), sigma, device_);
  size_ = size;
  hooks.rope = tables_;
  return hooks;
}

}  // namespace trireme

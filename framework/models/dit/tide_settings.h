// TIDE (arXiv 2603.08928): sampling above the size that a model was trained for, without training. Text keys are
// anchored (their logits gain ln(N / N_trained)), rotary positions are scaled and sharpened as time goes
// (rope_scaling.h) and time leans towards noise by ln N. Every part is a switch, so that each can be measured alone.
#pragma once
#include "framework/config/config.h"
#include "framework/models/dit/denoiser.h"
#include "framework/models/dit/flow_schedule.h"
#include "framework/models/dit/rope_scaling.h"

#include <array>
#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

class TideSettings {
 public:
  void fields(Fields&);
  // Once, before hooks(). UsageError: text anchoring of a model without joint attention, where a constant of all text
  // keys cancels in the softmax.
  void prepare(const Denoiser& model);
  // The job's shift with this mu_mode.
  FlowShift shift(FlowShift job) const;
  // Nothing set where the picture is no larger than trained. `text_tokens`: of the longest text.
  DitHooks hooks(const Denoiser& model, const Grid& grid, std::int64_t text_tokens, double sigma);

  // Added to the logits of text keys; 0 up to gate_px.
  double text_bias(const DenoiserInfo& model, const Grid& grid) const;
  RopeScaling scaling() const;

 private:
  // A factor of all logits: proportional attention, or the temperature of a model that has no rotary channels.
  double logit_scale(const DenoiserInfo& model, const Grid& grid, double sigma) const;

  bool text_anchor_ = true, dtc_ = true, dype_ = true, proportional_ = false;
  std::string freq_mode_ = "raw", positions_ = "yarn", mu_mode_ = "log", beta_round_ = "none", attention_ = "lse_merge";
  double alpha_low_ = 0.6, alpha_high_ = 0.2;
  std::int64_t gate_px_ = 0;
  at::Device device_ = at::kCPU;  // the model's
  bool text_turns_ = false;       // its text tokens carry rotary tables
  RopeTables tables_;             // of the last hooks()
  std::array<std::int64_t, 4> size_{};
};

}  // namespace trireme

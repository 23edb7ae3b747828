// Which tokens RAS (Region-Adaptive Sampling, arXiv 2502.10389) leaves out of a step, as its released code chooses
// them, with what that code leaves to chance said: ties go by index, any shape, high_ratio 0.
#pragma once
#include "recipes/sdit/regions.h"

namespace trireme::sdit {

struct RasRule {
  double starvation = 0.1;
  double starvation_sign = 1;  // +1 as released: what was left out before is metered higher
  double high_ratio = 1;       // of the tokens left out, how many are those of highest metric
};

// [B, N]: of diff = (sigma_next - sigma) v, f32 [B, C, F, H, W], over channels the deviation (C - 1 in the divisor) or
// with `norm` the Euclidean norm, its mean over a token's pixels.
at::Tensor ras_metric(const at::Tensor& diff, TokenPatch patch, bool norm);

struct RasChoice {
  at::Tensor active;    // i64 [B, K], ascending
  at::Tensor left_out;  // i64 [B, N - K], in the order of their metric
};
// left_out_before: f32 [B, N], how often each was, from -(number of sigmas) on; this choice is counted in.
// skip: how many to leave out; int(skip (1 - h)) of the lowest and int(skip h) of the highest metric are.
RasChoice choose_ras(const at::Tensor& metric, at::Tensor& left_out_before, std::int64_t skip, const RasRule& rule);

// How many tokens each step leaves out: int((1 - ratio) tokens); with ramp_steps > 0 that plus ramp for every
// ramp_steps steps before or after the middle one, floored to whole 64. 0 in the steps before `start`, from `end` on
// and at resets. UsageError: a ramp that leaves out fewer than 0 or more than all.
struct RasPlan {
  double sample_ratio = 0.5;
  std::int64_t steps = 30, start = 4, end = 30, ramp = 256, ramp_steps = 0;
  std::vector<std::int64_t> resets = {};
};
std::vector<std::int64_t> ras_skips(const RasPlan& plan, std::int64_t tokens);

}  // namespace trireme::sdit

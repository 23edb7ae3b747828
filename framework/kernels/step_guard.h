// What a step that may not count leaves for all that follows, in one launch: is it finite, and which steps were not.
// On the host and on CUDA, equal bit by bit. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>

namespace trireme::kernels {

// Steps that were skipped: the row of them that goes on, the longest row, the first one's number (infinite: none), all.
struct SkipCounts {
  double row, longest, first, total;
};

// All pointers of the place.
struct StepGuardJob {
  const double *norm, *loss;  // of all gradients; of the step
  double step;                // its number, from 1
  const double* device_step;  // not null: in its place
  float *rounded, *skip;      // the norm in f32; 1: it or the loss is not finite, else 0
  SkipCounts* counts;
};
extern Kernel<StepGuardJob> step_guard;

inline TRIREME_BOTH void guard_step(const StepGuardJob& job) {
  const auto norm = static_cast<float>(*job.norm);
  const bool skipped = !(std::isfinite(norm) && std::isfinite(*job.loss));
  *job.rounded = norm;
  *job.skip = skipped ? 1.0f : 0.0f;
  SkipCounts c = *job.counts;
  c.row = skipped ? c.row + 1 : 0;
  if (c.row > c.longest) c.longest = c.row;
  if (skipped && std::isinf(c.first)) c.first = job.device_step ? *job.device_step : job.step;
  c.total += skipped ? 1 : 0;
  *job.counts = c;
}

}  // namespace trireme::kernels

// Rectified flow: x_sigma = (1 - sigma) x0 + sigma e, sigma in [0, 1], 1 = pure noise; a model returns v = e - x0. What
// a sampler needs besides: the noise levels of its steps, Euler's step, and noise put back on a picture.
// Source: Esser et al. 2024 (arXiv 2403.03206) for the shifts; the schedule is that of diffusers' FlowMatchEuler.
#pragma once
#include "framework/config/config.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// How levels lean towards noise. `mu_mode` none: the static shift sigma' = s sigma / (1 + (s - 1) sigma). Any other:
// the dynamic one, sigma' = e^mu / (e^mu + 1 / sigma - 1), with mu of the number N of image tokens, a line through two
// points (N, mu): linear in N, sqrt in sqrt(N), log in ln N; clamp: linear, at most the second point's mu; or a number.
struct FlowShift {
  double shift = 1;
  std::string mu_mode = "none";
  std::array<double, 4> points = {256, 0.5, 4096, 1.15};  // N and mu of both, FLUX's
};

// Is it a word of FlowShift::mu_mode, or a number?
bool is_mu_mode(const std::string& mode);

// Throws UsageError for a mode that is neither a word nor a number.
double flow_mu(const FlowShift& shift, double tokens);

// steps + 1 levels: linspace(1, 1/steps, steps), shifted, then 0. In f64, rounded to f32 once, as a model gets them.
std::vector<double> flow_sigmas(std::int64_t steps, const FlowShift& shift, double tokens);

// x + (to - from) v in f32; x and v of one shape.
at::Tensor euler_step(const at::Tensor& x, const at::Tensor& v, double from, double to);

// What v says the picture is: x - sigma v.
at::Tensor predicted_clean(const at::Tensor& x, const at::Tensor& v, double sigma);

// Noise e on a clean x0. Flow: (1 - sigma) x0 + sigma e. DDIM, from level abar_0 to abar_t: sqrt(abar_t / abar_0) x +
// sqrt(1 - abar_t / abar_0) e. The two are not interchangeable: only the latter keeps the variance.
at::Tensor renoise_flow(const at::Tensor& x0, const at::Tensor& e, double sigma);
at::Tensor renoise_ddim(const at::Tensor& x, const at::Tensor& e, double abar_t, double abar_0 = 1);

}  // namespace trireme

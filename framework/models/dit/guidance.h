// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): v = vu + g (vc - vu).
#pragma once
#include "framework/models/dit/denoiser.h"

#include <ATen/core/Tensor.h>

namespace trireme {

// x f32 [B, C, F, H, W], sigma of all rows -> f32. type: in which the model computes.
at::Tensor velocity_of(Denoiser& model, at::ScalarType type, const Conditioning& condition, const at::Tensor& x,
                       double sigma, const DitHooks& hooks = {});
// One forward of both halves, the conditional first; their texts have one length.
at::Tensor guided_velocity(Denoiser& model, at::ScalarType type, const Conditioning& condition,
                           const Conditioning& none, const at::Tensor& x, double sigma, double guidance,
                           const DitHooks& hooks = {});
at::Tensor guided_sum(const at::Tensor& conditional, const at::Tensor& unconditional, double guidance);

}  // namespace trireme

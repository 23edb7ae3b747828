// Training a diffusion transformer by flow matching (Lipman et al., arXiv 2210.02747; levels of Esser et al., arXiv
// 2403.03206), and the plain sampling its evaluation needs.
#pragma once
#include "framework/models/dit/denoiser.h"

#include <cstdint>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace trireme {

// Unit normal f32 [ids.numel(), shape...] on the device of `ids` (i64): a row is a function of (seed, purpose, draw,
// its id), so a sample meets the same noise on any rank. Host and CUDA differ in last bits.
at::Tensor noise_of(std::uint64_t seed, std::string_view purpose, std::uint32_t draw, const at::Tensor& ids,
                    at::IntArrayRef shape);

// Mean over all values of (model(x_sigma) - (e - x0))^2, with x_sigma = (1 - sigma) x0 + sigma e. x0 and e f32
// [B, C, F, H, W], sigma f32 [B].
at::Tensor flow_loss(Denoiser& model, const at::Tensor& x0, const at::Tensor& e, const at::Tensor& sigma,
                     const Conditioning& condition, const DitHooks& hooks = {});

// Euler from noise x f32 through `steps` equal levels, with guidance g: v = vu + g (vc - vu). `none` is used where g is
// not 1.
at::Tensor plain_sample(Denoiser& model, at::Tensor x, const Conditioning& condition, const Conditioning& none,
                        double guidance, std::int64_t steps);

}  // namespace trireme

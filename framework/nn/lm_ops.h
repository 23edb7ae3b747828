// Pointwise parts of language models on the autograd graph, each as one node (framework/kernels/lm_pointwise.h): f32
// and bf16 with frozen norms; anything else runs ATen's operators.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme::nn {

// silu(gate) * up, of one shape.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// Halves of heads turned against each other: x [T, heads, d], cos and sin f32 [T, 1, d] whose halves are alike.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

struct Normed {
  at::Tensor sum, y;
};
// sum = x + add (undefined: x itself), y = RMSNorm of sum over the last dimension.
Normed rms_norm(const at::Tensor& x, const at::Tensor& add, const at::Tensor& weight, double eps);

}  // namespace trireme::nn

// The weight's gradient of y = x w^T, in the memory from which it is reduced.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme::nn {

// dy [n, out], x [n, in] -> dy^T x [out, in], told to the reducer block by block: what is written may be on its way, so
// it is only to be handed to autograd.
at::Tensor weight_gradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x);

}  // namespace trireme::nn

// y = activation(x w^T + b) as one autograd node; the weights' gradients are written straight into the reducer's
// buckets.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme::nn {

// x [n, in], w [out, in], b [out], floating, on one device -> [n, out] of x's type. w and b may be wider than x (the
// masters of bf16 and fp16): they are cast, and their gradients arrive in their own type. With `relu`, max(0, .).
at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, bool relu);

}  // namespace trireme::nn

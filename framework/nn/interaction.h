// DLRM's dot interaction as one autograd node.
#pragma once
#include <functional>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

// x [n, d]; rows [F, n, d], one table after the other, table k at place[k], i64 [F] -> [n, d + (F + 1) F / 2]: x, then
// the strictly lower triangle of T T^T of T = [x, e_0, e_1, ...]. On one device, x and rows f32 or f64. `known` is
// called with the gradient of `rows` [F, n, d] as soon as backward has it, before that of x travels on, and autograd
// sees none of it; empty: autograd gets it.
at::Tensor interaction(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place,
                       std::function<void(const at::Tensor&)> known = {});

}  // namespace trireme::nn

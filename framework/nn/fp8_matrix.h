// Products of e4m3 matrices with a scale for each row of either (Hopper's and later tensor cores; elsewhere the same
// numbers in f32), for a frozen base.
#pragma once
#include <optional>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

struct Fp8Rows {
  at::Tensor values, scales;  // e4m3 [rows, width], f32 [rows]
};
// x [rows, width] of f32 or bf16; the width is a multiple of 16. columns: f32 [width], what x's are multiplied by
// first.
Fp8Rows fp8_rows(const at::Tensor& x, const at::Tensor& columns = {});

// left right^T of `type`: [rows of left, rows of right]; bias [rows of right], or undefined.
at::Tensor fp8_product(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& bias, at::ScalarType type);
// dy W of dy's type, from the codes of W's rows [out, in]: their scales go into dy before it is coded, and the codes
// are turned, as tensor cores want the sum along memory. A second set of codes, by columns, would double W's memory and
// its way between ranks.
at::Tensor fp8_product_back(const at::Tensor& dy, const Fp8Rows& weight);

}  // namespace trireme::nn

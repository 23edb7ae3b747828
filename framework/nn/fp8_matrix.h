// Products of e4m3 matrices with a scale for each row of either (Hopper's and later tensor cores; elsewhere the same
// numbers in f32), for a frozen base.
#pragma once
#include <optional>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

struct Fp8Rows {
  at::Tensor values, scales;  // e4m3 [rows, width], f32 [rows]
};
// x [rows, width] of f32 or bf16; the width is a multiple of 16.
Fp8Rows fp8_rows(const at::Tensor& x);

// A weight by its rows, for x W^T, and by its columns, for dy W: tensor cores want either sum along memory.
struct Fp8Matrix {
  Fp8Rows rows, columns;
};
Fp8Matrix fp8_matrix(const at::Tensor& weight);

// left right^T of `type`: [rows of left, rows of right]; bias [rows of right], or undefined.
at::Tensor fp8_product(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& bias, at::ScalarType type);

}  // namespace trireme::nn

#include "framework/nn/fp8_matrix.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/fp8_rows.h"

#include <ATen/ATen.h>

namespace trireme::nn {

Fp8Rows fp8_rows(const at::Tensor& x) {
  if (x.size(1) % 16 != 0)
    throw UsageError("FP8 base", "a width of " + std::to_string(x.size(1)), "widths must be multiples of 16");
  at::Tensor c = x.contiguous();
  if (reinterpret_cast<std::uintptr_t>(c.const_data_ptr()) % 16 != 0) c = c.clone();
  Fp8Rows all{at::empty_like(c, c.options().dtype(at::kFloat8_e4m3fn)),
              at::empty({c.size(0)}, c.options().dtype(at::kFloat))};
  kernels::fp8_rows({.type = dtype_of(c),
                     .x = c.const_data_ptr(),
                     .codes = static_cast<std::uint8_t*>(all.values.mutable_data_ptr()),
                     .scales = all.scales.mutable_data_ptr<float>(),
                     .rows = c.size(0),
                     .width = c.size(1)},
                    buffer_of(c).place);
  return all;
}

Fp8Matrix fp8_matrix(const at::Tensor& weight) { return {fp8_rows(weight), fp8_rows(weight.t())}; }

at::Tensor fp8_product(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& bias, at::ScalarType type) {
  const at::Tensor of_rows = left.scales.unsqueeze(1), of_columns = right.scales.unsqueeze(0);
  if (left.values.is_cuda() && type == at::kBFloat16)
    return at::_scaled_mm(left.values, right.values.t(), of_rows, of_columns,
                          bias.defined() ? std::optional(bias) : std::nullopt, {}, type, /*use_fast_accum=*/true);
  at::Tensor y = at::mm(left.values.to(at::kFloat), right.values.to(at::kFloat).t()) * of_rows * of_columns;
  if (bias.defined()) y = y + bias;
  return y.to(type);
}

}  // namespace trireme::nn

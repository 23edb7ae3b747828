#include "framework/nn/fp8_matrix.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/byte_transpose.h"
#include "framework/kernels/fp8_rows.h"

#include <array>
#include <mutex>
#include <set>
#include <string_view>

#include <ATen/ATen.h>

namespace trireme::nn {
namespace {

// bf16, on tensor cores, or undefined: with scales by rows cuBLASLt has no algorithm for some shapes and does not say
// for which (torchao's issue 4582 has such of CUDA 12.9; 13.0 refuses others), so each is tried once. A bias comes
// later: whether that kernel adds one is not said either.
at::Tensor scaled_by_rows(const Fp8Rows& left, const Fp8Rows& right) {
  static std::mutex mutex;
  static std::set<std::array<std::int64_t, 3>> refused;
  const std::array shape{left.values.size(0), right.values.size(0), left.values.size(1)};
  {
    const std::lock_guard lock(mutex);
    if (refused.contains(shape)) return {};
  }
  try {
    return at::_scaled_mm(left.values, right.values.t(), left.scales.unsqueeze(1), right.scales.unsqueeze(0), {}, {},
                          at::kBFloat16, /*use_fast_accum=*/true);
  } catch (const c10::Error& e) {
    if (std::string_view(e.what_without_backtrace()).find("CUBLAS_STATUS_NOT_SUPPORTED") == std::string_view::npos)
      throw;
  }
  const std::lock_guard lock(mutex);
  refused.insert(shape);
  return {};
}

// f32 with one scale of 1 for all, which takes every shape.
at::Tensor unscaled(const Fp8Rows& left, const Fp8Rows& right) {
  const at::Tensor one = at::ones({}, left.scales.options());
  return at::_scaled_mm(left.values, right.values.t(), one, one, {}, {}, at::kFloat, /*use_fast_accum=*/true);
}

// Has this process's GPU FP8 tensor cores (compute capability 8.9 and above)? Torch's product refuses others. Asked
// first where a base's codes are made, which no graph records.
bool tensor_cores(const at::Tensor& codes) {
  static const bool has = [&] {
    try {
      const at::Tensor tile = at::zeros({16, 16}, codes.options().dtype(at::kByte)).view(at::kFloat8_e4m3fn);
      const Fp8Rows rows{tile, at::ones({16}, codes.options().dtype(at::kFloat))};
      return unscaled(rows, rows).defined();
    } catch (const c10::Error& e) {  // other reasons come again where it matters
      return std::string_view(e.what_without_backtrace()).find("compute capability") == std::string_view::npos;
    }
  }();
  return has;
}

bool on_cores(const at::Tensor& codes, at::ScalarType type) {
  return codes.is_cuda() && type == at::kBFloat16 && tensor_cores(codes);
}

}  // namespace

Fp8Rows fp8_rows(const at::Tensor& x, const at::Tensor& columns) {
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
                     .columns = columns.defined() ? columns.const_data_ptr<float>() : nullptr,
                     .rows = c.size(0),
                     .width = c.size(1)},
                    buffer_of(c).place);
  if (c.is_cuda()) (void)tensor_cores(all.values);
  return all;
}

at::Tensor fp8_product(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& bias, at::ScalarType type) {
  const bool cores = on_cores(left.values, type);
  at::Tensor y = cores ? scaled_by_rows(left, right) : at::Tensor();
  if (!y.defined()) {
    y = cores ? unscaled(left, right) : at::mm(left.values.to(at::kFloat), right.values.to(at::kFloat).t());
    y = y * left.scales.unsqueeze(1) * right.scales.unsqueeze(0);
  }
  if (bias.defined()) y = y + bias;
  return y.to(type);
}

at::Tensor fp8_product_back(const at::Tensor& dy, const Fp8Rows& weight) {
  const at::Tensor& codes = weight.values;
  const Fp8Rows rows = fp8_rows(dy, weight.scales);
  if (!on_cores(codes, dy.scalar_type()))
    return (at::mm(rows.values.to(at::kFloat), codes.to(at::kFloat)) * rows.scales.unsqueeze(1)).to(dy.scalar_type());
  const Fp8Rows turned{at::empty({codes.size(1), codes.size(0)}, codes.options()),
                       at::ones({codes.size(1)}, weight.scales.options())};
  kernels::byte_transpose({.from = static_cast<const std::uint8_t*>(codes.const_data_ptr()),
                           .to = static_cast<std::uint8_t*>(turned.values.mutable_data_ptr()),
                           .rows = codes.size(0),
                           .columns = codes.size(1)},
                          buffer_of(weight.scales).place);
  return fp8_product(rows, turned, {}, dy.scalar_type());
}

}  // namespace trireme::nn

#include "framework/base/tensor.h"

#include "comm/device.h"
#include "comm/error.h"
#include "framework/base/direct_archive.h"

#include <utility>

namespace trireme {

namespace {

constexpr std::pair<at::ScalarType, DType> types[] = {
    {at::kDouble, DType::f64}, {at::kFloat, DType::f32}, {at::kHalf, DType::f16}, {at::kBFloat16, DType::bf16},
    {at::kLong, DType::i64},   {at::kInt, DType::i32},   {at::kByte, DType::u8}};

}  // namespace

DType dtype_of(const at::Tensor& t) {
  for (const auto& [scalar, dtype] : types)
    if (scalar == t.scalar_type()) return dtype;
  throw Error(ExitCode::bug, "tensor", std::string("no buffer type for ") + c10::toString(t.scalar_type()));
}

at::ScalarType scalar_type(DType t) {
  for (const auto& [scalar, dtype] : types)
    if (dtype == t) return scalar;
  throw Error(ExitCode::bug, "tensor", "no tensor type for this buffer type");
}

Buffer buffer_of(const at::Tensor& t) {
  TORCH_CHECK(t.is_contiguous(), "buffer_of: the tensor is not contiguous");
  Buffer b{t.data_ptr(), std::size_t(t.numel()), dtype_of(t), {}};
  if (t.is_cuda()) b.place = current_place(int(t.get_device()));
  return b;
}

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  if (host.device() == device) return host;
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host.to(device);
}

void archive(Archive& ar, std::string_view name, at::Tensor& t, Sharing sharing) {
  at::NoGradGuard no_grad;
  const auto shape = t.sizes().vec();
  if (t.is_cpu() && t.is_contiguous()) return ar.array(name, dtype_of(t), shape, t.data_ptr(), std::move(sharing));
  const auto copy = [&](void* own) {
    at::Tensor host = at::from_blob(own, shape, t.scalar_type()), here = t.detach();
    ar.loading() ? here.copy_(host) : host.copy_(here);
  };
  if (auto* direct = dynamic_cast<DirectArchive*>(&ar))
    return direct->array_through(name, dtype_of(t), shape, copy, std::move(sharing));
  const at::Tensor host = at::empty(shape, t.scalar_type());
  if (!ar.loading()) copy(host.data_ptr());
  ar.array(name, dtype_of(t), shape, host.data_ptr(), std::move(sharing));
  if (ar.loading()) copy(host.data_ptr());
}

}  // namespace trireme

#include "framework/tensor.h"

#include "comm/error.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme {

DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kFloat:
      return DType::f32;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    case at::kLong:
      return DType::i64;
    case at::kInt:
      return DType::i32;
    case at::kByte:
      return DType::u8;
    default:
      throw Error(ExitCode::bug, "tensor", std::string("no buffer type for ") + c10::toString(t.scalar_type()));
  }
}

at::ScalarType scalar_type(DType t) {
  switch (t) {
    case DType::f64:
      return at::kDouble;
    case DType::f32:
      return at::kFloat;
    case DType::f16:
      return at::kHalf;
    case DType::bf16:
      return at::kBFloat16;
    case DType::i64:
      return at::kLong;
    case DType::i32:
      return at::kInt;
    case DType::u8:
      return at::kByte;
  }
  return at::kFloat;
}

Buffer buffer_of(const at::Tensor& t) {
  TORCH_CHECK(t.is_contiguous(), "buffer_of: the tensor is not contiguous");
  Buffer b{t.data_ptr(), std::size_t(t.numel()), dtype_of(t), {}};
  if (t.is_cuda())
    b.place = {t.get_device(), c10::impl::VirtualGuardImpl(at::kCUDA).getStream(t.device()).native_handle()};
  return b;
}

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host.to(device);
}

void archive(Archive& ar, std::string_view name, at::Tensor& t, Sharing sharing) {
  at::NoGradGuard no_grad;
  const auto shape = t.sizes().vec();
  at::Tensor host = t.is_cpu() && t.is_contiguous() ? t.detach() : t.detach().cpu().contiguous();
  ar.array(name, dtype_of(host), shape, host.data_ptr(), sharing);
  if (ar.loading() && host.data_ptr() != t.data_ptr()) t.detach().copy_(host);
}

}  // namespace trireme

#include "framework/nn/weight_gradient.h"

#include "framework/gradients/slot.h"

namespace trireme::nn {

at::Tensor weight_gradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x) {
  at::Tensor dw = gradient_destination(weight);
  if (!dw.defined()) return at::mm(dy.t(), x);
  std::int64_t first = 0;
  for (const std::int64_t end : gradient_blocks(weight)) {
    at::Tensor rows = dw.narrow(0, first, end - first);
    at::mm_out(rows, dy.narrow(1, first, end - first).t(), x);
    gradient_written(weight, end);
    first = end;
  }
  return dw;
}

}  // namespace trireme::nn

#include "framework/nn/weight_gradient.h"

#include "framework/gradients/slot.h"

namespace trireme::nn {

at::Tensor weight_gradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x) {
  at::Tensor dw = gradient_destination(weight);
  const bool same = dy.scalar_type() == weight.scalar_type();
  if (!dw.defined()) return at::mm(dy.t(), x).to(weight.scalar_type());
  std::int64_t first = 0;
  for (const std::int64_t end : gradient_blocks(weight)) {
    at::Tensor rows = dw.narrow(0, first, end - first);
    const at::Tensor columns = dy.narrow(1, first, end - first).t();
    same ? at::mm_out(rows, columns, x) : rows.copy_(at::mm(columns, x));
    gradient_written(weight, end);
    first = end;
  }
  return dw;
}

}  // namespace trireme::nn

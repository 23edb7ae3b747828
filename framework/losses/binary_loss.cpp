#include "framework/losses/binary_loss.h"

#include "framework/base/tensor.h"
#include "framework/kernels/binary_loss.h"

#include <ATen/Dispatch.h>

namespace trireme {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct BinaryLoss : torch::autograd::Function<BinaryLoss> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& labels, double divisor) {
    const at::Tensor loss = at::empty({}, logits.options()), gradient = at::empty_like(logits);
    AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "binary_loss", [&] {
      kernels::binary_loss({logits.const_data_ptr<scalar_t>(), labels.const_data_ptr<scalar_t>(), logits.numel(),
                            divisor, loss.mutable_data_ptr<scalar_t>(), gradient.mutable_data_ptr<scalar_t>()},
                           buffer_of(logits).place);
    });
    ctx->save_for_backward({gradient});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {ctx->get_saved_variables()[0] * grads[0], {}, {}};
  }
};

}  // namespace

at::Tensor binary_loss(const at::Tensor& logits, const at::Tensor& labels, double divisor) {
  return BinaryLoss::apply(logits.contiguous(), labels.contiguous(), divisor);
}

}  // namespace trireme

// Binary cross entropy of logits as one autograd node, whose gradient is computed beside the loss.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme {

// logits, labels [n], f32 or f64, on one device, labels within [0, 1] and without a gradient -> their sum by `divisor`,
// a scalar.
at::Tensor binary_loss(const at::Tensor& logits, const at::Tensor& labels, double divisor);

}  // namespace trireme

// Gradient checkpointing (Chen et al., arXiv 1604.06174): a part of a model keeps its input alone and is computed again
// in backward.
#pragma once
#include <functional>
#include <span>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

// A pure function of x and weights: both passes must give the same bits.
using CheckpointedPart = std::function<at::Tensor(const at::Tensor& x, std::span<const at::Tensor> weights)>;

// Is a part being computed again, on this thread? Its result is not read then, only what backward needs of the way
// there.
bool computed_again();

// part(x, weights). `part` is kept until backward. The caller excludes autocast (c10::autocast_dispatch_keyset): `part`
// casts by itself, and runs without autocast in backward too.
at::Tensor checkpointed(const CheckpointedPart& part, const at::Tensor& x, std::span<const at::Tensor> weights);

}  // namespace trireme::nn

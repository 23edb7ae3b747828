// A pre-LN transformer block out of ATen operators, for any device and type: what GPUs and low precisions run.
#pragma once
#include "framework/nn/packed_attention.h"
#include "framework/nn/transformer.h"

namespace trireme::nn {

// x [total, w]: rows of `s` in the compute type (f32, f64, bf16, fp16), which is also that of everything between the
// blocks: weights are cast to it, their gradients arrive in their own type. No autocast may be on.
// pool (i64 [count], may be undefined): the last block's: queries and MLP of these rows alone, -> [count, w].
at::Tensor device_block(const at::Tensor& x, const BlockParameters& p, const Sequences& s, const at::Tensor& pool,
                        const Transformer::Shape& shape);

}  // namespace trireme::nn

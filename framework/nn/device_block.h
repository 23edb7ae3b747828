// A pre-LN transformer block out of ATen operators, for any device and type: what GPUs and low precisions run.
#pragma once
#include "framework/nn/packed_attention.h"
#include "framework/nn/transformer.h"

namespace trireme::nn {

// x [total, w]: rows of `s`. Products are of `type` (f32, f64, bf16, fp16), to which weights are cast while their
// gradients arrive in their own type; the result, and what flows past the products, is of x's type, which may be wider.
// No autocast may be on. pool (i64 [count], may be undefined): the last block's: queries and MLP of these rows alone,
// -> [count, w].
at::Tensor device_block(const at::Tensor& x, const BlockParameters& p, const Sequences& s, const at::Tensor& pool,
                        const Transformer::Shape& shape, at::ScalarType type);

}  // namespace trireme::nn

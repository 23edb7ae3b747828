// One pre-LN transformer block as a single autograd node with a hand-written backward, for host memory in f32 or f64.
// GEMMs go to ATen's BLAS; everything between them is fused; normalised inputs and activations are recomputed instead
// of stored; weight gradients are written straight into the reducer's buckets.
#pragma once
#include "framework/nn/transformer.h"

namespace trireme::nn {

// x [n, w]: packed rows of sequences with the given offsets [s + 1] (i64, host). -> [n, w].
// With `pool` [s] (i64, host: one row of each sequence; empty: none): -> [s, w], only those rows of the output.
at::Tensor fused_block(const at::Tensor& x, const BlockParameters& p, const at::Tensor& offsets, const at::Tensor& pool,
                       const Transformer::Shape& shape);

}  // namespace trireme::nn

// Attention over packed sequences out of ATen operators: any device and type. On a GPU in bf16 and fp16 it is ATen's
// flash attention, of sequences of any lengths without padding; elsewhere they are padded for
// scaled_dot_product_attention.
#pragma once
#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

// Rows of `count` sequences one after another.
struct Sequences {
  // Of lengths[i] rows each, which `device` will hold. The host does not wait for it.
  Sequences(std::span<const std::int64_t> lengths, at::Device device);
  bool equal() const { return !rows.defined(); }  // all are of the same length

  std::int64_t count = 0, longest = 0, total = 0;
  at::Tensor offsets;  // i32 [count + 1]: first row of each, and the end
  at::Tensor rows;     // i64 [total]: where each row lies when all are padded to the longest; undefined where equal
};

// qkv [total, 3w] -> [total, w]. causal: a row sees its own sequence up to itself. Sequences of different lengths must
// be causal.
at::Tensor packed_attention(const at::Tensor& qkv, const Sequences& s, std::int64_t heads, bool causal);
// One query a sequence over all of its rows: q [count, w], kv [total, 2w] -> [count, w].
at::Tensor pooled_attention(const at::Tensor& q, const at::Tensor& kv, const Sequences& s, std::int64_t heads);

}  // namespace trireme::nn

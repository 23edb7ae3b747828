// Multi-head attention over packed sequences of any length, host memory. Softmax of q k^T / sqrt(d), optionally causal.
//
// Rows of q, k, v and the output are `stride` elements apart; head h is columns [h*d, (h+1)*d). Sequence s has query
// rows [q_offsets[s], q_offsets[s+1]) and key rows [k_offsets[s], k_offsets[s+1]). Causal: query i of a sequence with n
// queries and m keys sees keys j <= i + m - n (so a single query sees all). Parallel over (sequence, head).
#pragma once
#include <cstdint>
#include <span>

namespace trireme::kernels {

struct AttentionShape {
  std::span<const std::int64_t> q_offsets, k_offsets;  // sequences + 1 entries each
  std::int64_t heads = 1, head_dim = 64;
  bool causal = false;
};

template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;
};

// out = attention. Keeps nothing: backward recomputes the probabilities.
template <class T>
void attention(const AttentionShape& shape, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out);

// dq, dk, dv are overwritten.
template <class T>
void attention_backward(const AttentionShape& shape, Rows<const T> q, Rows<const T> k, Rows<const T> v,
                        Rows<const T> dout, Rows<T> dq, Rows<T> dk, Rows<T> dv);

}  // namespace trireme::kernels

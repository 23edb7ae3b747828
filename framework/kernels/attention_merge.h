// Two attentions over different keys put together by their log-sum-exp (the step of flash and ring attention), and rows
// put into their places of a cache. f32 or bf16, host and CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"
#include "framework/kernels/dit_pointwise.h"

namespace trireme::kernels {

// [batch, heads, rows, head_dim] with elements of a row side by side.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t of_batch, of_head, of_row;  // strides
};

// lse = log(exp(a_lse + bias) + exp(b_lse)); out = exp(a_lse + bias - lse) a + exp(b_lse - lse) b. Sums are f32 [batch,
// heads, rows], contiguous. One of both sums may be -infinity.
template <class T>
struct MergeJob {
  HeadRows<const T> a, b;
  const float *a_lse, *b_lse;
  HeadRows<T> out;
  float* lse;
  std::int64_t batch, heads, rows, head_dim;
  float bias;
};
extern Kernel<MergeJob<float>> merge_attention_f32;
extern Kernel<MergeJob<BrainFloat>> merge_attention_bf16;
inline void merge_attention(const MergeJob<float>& job, Place place) { merge_attention_f32(job, place); }
inline void merge_attention(const MergeJob<BrainFloat>& job, Place place) { merge_attention_bf16(job, place); }

// to[b][places[b % choices][i]] = from[b][i] for the `rows` rows of `bytes` each; strides in bytes. Places are not
// checked.
struct PutRowsJob {
  const unsigned char* from;
  unsigned char* to;
  const std::int64_t* places;  // [choices, rows]
  std::int64_t batch, choices, rows, bytes, from_batch, from_row, to_batch, to_row;
};
extern Kernel<PutRowsJob> put_rows;

}  // namespace trireme::kernels

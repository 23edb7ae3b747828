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

// Rows of keys and values into their caches. The first `before` rows stay where they are, the next `rows` go to
// before + places[b % choices][i], and the last `after` behind before + `span`. Rows have `bytes`, a multiple of 16;
// strides in bytes. Places are not checked.
struct PutRowsJob {
  const unsigned char* from[2];
  unsigned char* to[2];
  const std::int64_t* places;  // [choices, rows]
  std::int64_t batch, choices, before, rows, after, span, bytes, from_batch, from_row, to_batch, to_row;
};
// Where row i of batch element b goes.
TRIREME_DIT_BOTH std::int64_t place_of_row(const PutRowsJob& job, std::int64_t b, std::int64_t i) {
  if (i < job.before) return i;
  if (i < job.before + job.rows) return job.before + job.places[b % job.choices * job.rows + i - job.before];
  return i - job.rows + job.span;
}
extern Kernel<PutRowsJob> put_rows;

}  // namespace trireme::kernels

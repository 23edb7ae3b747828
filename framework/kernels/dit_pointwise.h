// Pointwise parts of diffusion transformers' blocks, fused so that each array is touched once: the gated residual with
// adaLN's LayerNorm (Peebles and Xie, arXiv 2212.09748), and RMSNorm with rotation (RoPE) of queries and keys. f32 or
// bf16 in and out, f32 between. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

#ifdef __CUDACC__
#define TRIREME_DIT_BOTH __host__ __device__ inline
#else
#define TRIREME_DIT_BOTH inline
#endif

namespace trireme::kernels {

struct BrainFloat {
  std::uint16_t bits;
};

TRIREME_DIT_BOTH float widened(float x) { return x; }
TRIREME_DIT_BOTH float widened(BrainFloat x) {
  union {
    std::uint32_t bits;
    float value;
  } u;
  u.bits = static_cast<std::uint32_t>(x.bits) << 16;
  return u.value;
}
TRIREME_DIT_BOTH void narrowed(float x, float& to) { to = x; }
TRIREME_DIT_BOTH void narrowed(float x, BrainFloat& to) {  // to the nearest, ties to even
  union {
    float value;
    std::uint32_t bits;
  } u;
  u.value = x;
  if (x != x)
    to.bits = 0x7FC0;
  else
    to.bits = static_cast<std::uint16_t>((u.bits + 0x7FFF + ((u.bits >> 16) & 1)) >> 16);
}

// sum = x + gate * add; y = LayerNorm(sum) * (1 + scale) + shift, without affine. Arrays [batch, tokens, width] are
// contiguous; rows of gate [batch, width] lie `gate_stride` elements apart, those of shift and scale `stride`.
template <class T, class M>
struct ModulateJob {
  const T *x, *add;  // add null: sum is x and is not written
  const M* gate;     // null: 1
  const M *shift, *scale;
  T *sum, *y;  // y null: no norm
  std::int64_t batch, tokens, width, gate_stride, stride;
  float eps;
};
extern Kernel<ModulateJob<float, float>> modulate_f32;
extern Kernel<ModulateJob<BrainFloat, BrainFloat>> modulate_bf16;
extern Kernel<ModulateJob<BrainFloat, float>> modulate_bf16_by_f32;
inline void modulate(const ModulateJob<float, float>& job, Place place) { modulate_f32(job, place); }
inline void modulate(const ModulateJob<BrainFloat, BrainFloat>& job, Place place) { modulate_bf16(job, place); }
inline void modulate(const ModulateJob<BrainFloat, float>& job, Place place) { modulate_bf16_by_f32(job, place); }

// In place, of every token: x = rotated(RMSNorm(x) * weight) over all heads together (Wan), of one or two vectors of
// heads * head_dim that a row begins with. Rows [batch, tokens] lie row_stride elements apart; tables as of QkJob.
template <class T>
struct RowNormJob {
  T* x;
  const T* weight[2];      // of the vectors; the second null: there is one
  const float *cos, *sin;  // null: no rotation
  std::int64_t batch, tokens, row_stride, heads, head_dim, table_stride;
  bool rotate_second;
  float eps;
};
extern Kernel<RowNormJob<float>> norm_rows_f32;
extern Kernel<RowNormJob<BrainFloat>> norm_rows_bf16;
inline void norm_rows(const RowNormJob<float>& job, Place place) { norm_rows_f32(job, place); }
inline void norm_rows(const RowNormJob<BrainFloat>& job, Place place) { norm_rows_bf16(job, place); }

// In place, of every token and head: q = rotated(RMSNorm(q) * weight), and the same of k. qkv [batch, tokens, 3, heads,
// head_dim], contiguous; head_dim even, at most 256. Tokens before `split` have the first weights, others the second.
// Pairs are adjacent channels; cos and sin [tokens, head_dim / 2], those of a batch `table_stride` elements apart (0:
// one for all).
template <class T>
struct QkJob {
  T* qkv;
  const T *q_first, *k_first, *q_second, *k_second;  // [head_dim]
  const float *cos, *sin;                            // null: no rotation
  std::int64_t batch, tokens, split, heads, head_dim, table_stride;
  bool rotate_k;
  float eps;
};
extern Kernel<QkJob<float>> norm_and_rotate_f32;
extern Kernel<QkJob<BrainFloat>> norm_and_rotate_bf16;
inline void norm_and_rotate(const QkJob<float>& job, Place place) { norm_and_rotate_f32(job, place); }
inline void norm_and_rotate(const QkJob<BrainFloat>& job, Place place) { norm_and_rotate_bf16(job, place); }

}  // namespace trireme::kernels

// Pointwise parts of language models, each of which touches its arrays once: RMSNorm (Zhang and Sennrich, arXiv
// 1910.07467) with the residual sum before it, rotation of queries and keys (RoPE, Su et al., arXiv 2104.09864), SwiGLU
// (Shazeer, arXiv 2002.05202), and cross-entropy with the gradient of its logits. f32 or bf16 in and out, f32 between.
// On the host and on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "framework/kernels/dit_pointwise.h"  // BrainFloat

#include <cstdint>

namespace trireme::kernels {

// All arrays are contiguous and begin on 16 bytes. RMSNorm's width: a multiple of 8, at most this.
constexpr std::int64_t most_norm_width = 8192;

// sum = x + add; y = sum / sqrt(mean(sum^2) + eps) * weight. Arrays [rows, width].
template <class T>
struct RmsNormJob {
  const T *x, *add, *weight;  // add null: sum is x and is not written
  T *sum, *y;
  std::int64_t rows, width;
  float eps;
};

// dx = dsum + the gradient of y by sum, which is that of x and of add.
template <class T>
struct RmsNormBackwardJob {
  const T *dy, *dsum, *sum, *weight;  // dsum null: 0
  T* dx;
  std::int64_t rows, width;
  float eps;
};

// Halves of a head turn against each other, as in Hugging Face's files: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin.
// x, y [tokens, heads, head_dim]; cos, sin [tokens, head_dim], of which the first halves are read.
template <class T>
struct RotateJob {
  const T* x;
  T* y;
  const float *cos, *sin;
  std::int64_t tokens, heads, head_dim;
  bool back;  // the other way: the gradient
};

// y = silu(gate) * up, or the gradients of both from dy.
template <class T>
struct SwigluJob {
  const T *gate, *up, *dy;  // dy null: forward
  T *y, *dgate, *dup;
  std::int64_t count;
};

// losses[r] = -log softmax(logits[r])[label]; logits become their gradient, softmax - (1 at the label). 0 of both where
// the label is below 0, and no number where it is no id. logits [rows, vocab], rows of any alignment.
template <class T>
struct TokenLossJob {
  T* logits;
  const std::int64_t* labels;
  float* losses;
  std::int64_t rows, vocab;
};

#define TRIREME_LM_KERNEL(job, name)                                   \
  extern Kernel<job<float>> name##_f32;                                \
  extern Kernel<job<BrainFloat>> name##_bf16;                          \
  inline void name(const job<float>& j, Place p) { name##_f32(j, p); } \
  inline void name(const job<BrainFloat>& j, Place p) { name##_bf16(j, p); }
TRIREME_LM_KERNEL(RmsNormJob, rms_norm)
TRIREME_LM_KERNEL(RmsNormBackwardJob, rms_norm_backward)
TRIREME_LM_KERNEL(RotateJob, rotate_halves)
TRIREME_LM_KERNEL(SwigluJob, swiglu)
TRIREME_LM_KERNEL(TokenLossJob, token_loss)
#undef TRIREME_LM_KERNEL

}  // namespace trireme::kernels

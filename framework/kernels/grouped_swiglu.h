// SwiGLU (arXiv 2002.05202) of many adapters: y = silu(g) u, where g and u are the base's products and the LoRA paths
// s S B^T of gate and up, which are made here and never written; backward makes them again, with the path of the next
// projection (down): dy + dS A. On the host and on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "framework/kernels/grouped_gemm.h"

namespace trireme::kernels {

// A target's adapters, a group each, and its S or dS [tokens, rank_stride].
struct SwigluPath {
  const GroupedAdapter* adapters = nullptr;
  const void* s = nullptr;
  std::int64_t rank_stride = 0;
};

// Rows of groups alone; each of them adapts all targets. Matrices [tokens, width]; type as of the grouped kernels.
struct GroupedSwiglu {
  GroupedTable table;
  DType type = DType::f32;
  std::int64_t width = 0;
  SwigluPath of_gate, of_up, of_down;                        // of_down: backward alone
  const void *gate = nullptr, *up = nullptr, *dy = nullptr;  // of the base; dy null: forward
  void *y = nullptr, *dgate = nullptr, *dup = nullptr;
};
extern Kernel<GroupedSwiglu> grouped_swiglu;

// Has CUDA a kernel for it? Elsewhere the parts run one by one.
inline bool has_grouped_swiglu(DType type, std::int64_t width) { return type == DType::bf16 && width % 8 == 0; }

}  // namespace trireme::kernels

// The LoRA path of many adapters in few launches (ALTO, arXiv 2604.05426, 6.1 and A.1): rows of one token matrix belong
// to groups, and every group multiplies with its own two small matrices. Per target: shrink (S = X A^T), expand
// (Y += s S B^T); backward shrink (dS = s dY B), expand (dX += mask dS A), outer (dA += dS^T X, dB += s dY^T S). Sums
// are f32 (f64 for f64) in an order that shapes alone decide: no atomics, the same bits on every run. On the host and
// on CUDA, compared by tolerance. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"
#include "framework/kernels/dropout.h"

#include <cstdint>

namespace trireme::kernels {

constexpr std::int64_t grouped_rows = 64;  // of a block
constexpr std::int64_t grouped_most_rank = 128;

// Rows [first, last) of the token matrices, and the dropout of their input.
struct GroupedRows {
  std::int32_t first = 0, last = 0;
  DropoutKey dropout;
};

// One adapter of one target: a [rank, in], b [out, rank] of the job's type, 16-byte aligned, da and db alike and f32
// (f64 for f64). rank is a multiple of 8; 0: the target is not adapted.
struct GroupedAdapter {
  const void *a = nullptr, *b = nullptr;
  void *da = nullptr, *db = nullptr;
  std::int32_t rank = 0;
  float scale = 0;
};

// Rows [first + 64 block, ...) of a group.
struct GroupedBlock {
  std::int32_t group = 0, block = 0;
};

// What all targets of a pass share. All pointers are of the place.
struct GroupedTable {
  const GroupedRows* rows = nullptr;         // a group each, ascending and disjoint
  const GroupedAdapter* adapters = nullptr;  // of this target, a group each
  const GroupedBlock* blocks = nullptr;      // every 64 rows of every group once
  std::int64_t groups = 0, block_count = 0;
  std::int64_t longest = 0;      // rows of the longest group
  std::int64_t rank_stride = 0;  // columns of S and dS: at least the largest rank; a multiple of 8
  std::int64_t tokens = 0;       // rows of the token matrices
};

struct GroupedShrink {
  GroupedTable table;
  DType type = DType::f32;  // f32, bf16; on the host f64 too
  bool backward = false;    // S = X A^T, or dS = s dY B
  const void* x = nullptr;  // [tokens, width]
  std::int64_t width = 0;
  void* s = nullptr;         // [tokens, rank_stride]; columns from a group's rank on are not written
  float* partial = nullptr;  // [grouped_column_splits(), tokens, rank_stride], where that is not 1
};
extern Kernel<GroupedShrink> grouped_shrink;

struct GroupedExpand {
  GroupedTable table;
  DType type = DType::f32;
  bool backward = false;    // Y += s S B^T, or dX += mask (dS A)
  const void* s = nullptr;  // [tokens, rank_stride]
  void* y = nullptr;        // [tokens, width]
  std::int64_t width = 0;
  std::uint32_t module = 0;  // dropout's name of the target
};
extern Kernel<GroupedExpand> grouped_expand;

struct GroupedOuter {
  GroupedTable table;
  DType type = DType::f32;
  const void *x = nullptr, *ds = nullptr;  // dA += dS^T X
  const void *dy = nullptr, *s = nullptr;  // dB += s dY^T S
  std::int64_t in = 0, out = 0;
  float* partial = nullptr;  // [grouped_token_splits(), groups, in + out, rank_stride], where that is not 1
};
extern Kernel<GroupedOuter> grouped_outer;

// to = from times the mask of dropout, in the rows of groups; other rows as they are.
struct GroupedDropout {
  const GroupedRows* rows = nullptr;
  std::int64_t groups = 0;
  DType type = DType::f32;
  const void* from = nullptr;
  void* to = nullptr;  // both [tokens, width]
  std::int64_t tokens = 0, width = 0;
  std::uint32_t module = 0;
};
extern Kernel<GroupedDropout> grouped_dropout;

// Into how many parts a long sum is cut on a GPU that few blocks would leave idle: by shapes alone.
inline std::int64_t grouped_splits(std::int64_t blocks, std::int64_t length) {
  constexpr std::int64_t wanted = 264, least = 256;  // blocks; terms of a part
  std::int64_t splits = 1;
  while (splits < 16 && blocks * splits * 2 <= wanted && length >= least * splits * 2) splits *= 2;
  return splits;
}
// Of a shrink over `width` columns, and of an outer over the rows of groups.
inline std::int64_t grouped_column_splits(const GroupedTable& t, std::int64_t width) {
  return grouped_splits(t.block_count, width);
}
inline std::int64_t grouped_token_splits(const GroupedTable& t, std::int64_t in, std::int64_t out) {
  return grouped_splits(t.groups * ((in + 63) / 64 + (out + 63) / 64), t.longest);
}

}  // namespace trireme::kernels

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
  const GroupedRows* rows = nullptr;     // a group each, ascending and disjoint
  const GroupedBlock* blocks = nullptr;  // every 64 rows of every group once
  std::int64_t groups = 0, block_count = 0;
  std::int64_t longest = 0;      // rows of the longest group
  std::int64_t rank_stride = 0;  // columns of S and dS: at least the largest rank; a multiple of 8
  std::int64_t tokens = 0;       // rows of the token matrices
};

// Targets that share their input (q, k, v; gate, up) go in one launch, side by side, so that it is read from memory
// once. adapters: a group each. type: f32, bf16; on the host f64 too.
constexpr int grouped_most_targets = 3;

struct ShrinkTarget {
  const GroupedAdapter* adapters = nullptr;
  const void* x = nullptr;  // [tokens, width]
  std::int64_t width = 0;
  void* s = nullptr;  // [tokens, rank_stride]; columns from a group's rank on are not written
};
struct GroupedShrink {
  GroupedTable table;
  DType type = DType::f32;
  bool backward = false;  // S = X A^T, or dS = s dY B
  int targets = 0;
  ShrinkTarget target[grouped_most_targets] = {};
  float* partial = nullptr;  // [grouped_splits(job), targets, tokens, rank_stride], where that is not 1
};
extern Kernel<GroupedShrink> grouped_shrink;

struct ExpandTarget {
  const GroupedAdapter* adapters = nullptr;
  const void* s = nullptr;  // [tokens, rank_stride]
  void* y = nullptr;        // [tokens, width]
  std::int64_t width = 0;
  const void* bias = nullptr;  // [width] or null; where y is written
  std::uint32_t module = 0;    // dropout's name of the target
};
struct GroupedExpand {
  GroupedTable table;
  DType type = DType::f32;
  // Y += s S B^T each, or dX += the sum of mask (dS A), y of the first; several of these: without dropout.
  bool backward = false;
  bool add = true;  // false: rows of groups that adapt the target are written, with the bias, rather than added to
  int targets = 0;
  ExpandTarget target[grouped_most_targets] = {};
};
extern Kernel<GroupedExpand> grouped_expand;

struct OuterTarget {
  const GroupedAdapter* adapters = nullptr;
  const void *x = nullptr, *ds = nullptr;  // dA += dS^T X
  const void *dy = nullptr, *s = nullptr;  // dB += s dY^T S
  std::int64_t in = 0, out = 0;
};
struct GroupedOuter {
  GroupedTable table;
  DType type = DType::f32;
  bool add = true;  // false: gradients are written, of groups with rows
  int targets = 0;
  OuterTarget target[grouped_most_targets] = {};
  float* partial = nullptr;  // [grouped_splits(job), groups, all in and out, rank_stride], where that is not 1
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
// How many targets a block of a GPU multiplies its rows with: all, if it reads the same x for them.
constexpr int grouped_rank_together = 64;  // above it their sums do not fit into a block's registers
inline int grouped_together(const GroupedShrink& job) {
  bool same = !job.backward && job.table.rank_stride <= grouped_rank_together;
  for (int t = 1; t < job.targets; ++t)
    same = same && job.target[t].x == job.target[0].x && job.target[t].width == job.target[0].width;
  return same ? job.targets : 1;
}
inline std::int64_t grouped_splits(const GroupedShrink& job) {
  std::int64_t width = 0;
  for (int t = 0; t < job.targets; ++t) width = width < job.target[t].width ? job.target[t].width : width;
  return grouped_splits(job.table.block_count * job.targets / grouped_together(job), width);
}
inline TRIREME_BOTH std::int64_t grouped_columns(const GroupedOuter& job) {
  std::int64_t columns = 0;
  for (int t = 0; t < job.targets; ++t) columns += job.target[t].in + job.target[t].out;
  return columns;
}
constexpr int grouped_outer_columns = 128;  // of a block: S and dS are read anew for each
inline std::int64_t grouped_splits(const GroupedOuter& job) {
  const auto tiles = (grouped_columns(job) + grouped_outer_columns - 1) / grouped_outer_columns;
  return grouped_splits(job.table.groups * tiles, job.table.longest);
}

}  // namespace trireme::kernels

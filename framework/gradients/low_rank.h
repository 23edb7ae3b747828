// What PowerSGD computes on its matrices M [m, n], all of a bucket at once, with factors P [r, m] and Q [r, n] (rows
// one after another). On the host by ATen, on CUDA by kernels that read M once each; all sums in an order that follows
// from the shapes alone. f32. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"

#include <cstdint>

namespace trireme {

struct LowRankMatrix {
  std::int64_t m = 0, n = 0, r = 0;
  std::int64_t gradient = 0, error = 0;  // where it begins in LowRankJob's arrays
  float *p = nullptr, *q = nullptr, *own_q = nullptr;
  // By low_rank_layout: where its partial sums begin, and its first tile in each kernel.
  std::int64_t partial_p = 0, partial_q = 0;
  std::int32_t first_tile[3] = {0, 0, 0};
};

// Tiles of project, back_project and approximate: rows and columns.
inline constexpr int low_rank_tile[3][2] = {{64, 256}, {256, 128}, {128, 128}};

struct LowRankJob {
  const LowRankMatrix* matrices = nullptr;
  std::int64_t count = 0, rank = 0;  // rank: the largest r
  std::int32_t tiles[3] = {0, 0, 0};
  float* gradient = nullptr;
  const float* before = nullptr;  // laid out as `error`; null: no feedback, and `error` holds what M is meanwhile
  float* error = nullptr;
  float* partial = nullptr;  // of low_rank_layout's length
};

// Fills in what says so above, and rank, count and tiles of `job`, whose `matrices` are in host memory here. Returns
// the f32 that `partial` must hold on CUDA.
std::int64_t low_rank_layout(LowRankMatrix* matrices, std::int64_t count, LowRankJob& job);

// error = before + gradient; P = Q error^T.
extern Kernel<LowRankJob> project;
// own_q = P error; q becomes a copy of it.
extern Kernel<LowRankJob> back_project;
// error -= P^T own_q, where there is feedback; gradient = P^T q.
extern Kernel<LowRankJob> approximate;

}  // namespace trireme

// Embedding bags of several tables at once, f32 and f64, on the host and on CUDA, equal bit by bit: lookup, and updates
// of the rows that a batch touched. Sums for a row go by pieces of `piece` occurrences in the order of the samples,
// then over the pieces: so results do not depend on threads, ranks or the device. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace trireme::kernels {

// A table: rows [first, first + rows) of memory that it shares with others. `column`: the widths of the tables before.
struct BagTable {
  std::int64_t first, rows, column, width;
  std::int32_t mean;     // the mean of a bag in place of its sum
  std::int32_t trained;  // 0: update() leaves it alone
};

// What `blocks` ranks ask of `count` tables: ids [blocks, b * columns], in each block table after table [b, width]. An
// id is a row of its table, or -1: none. Bags are numbered block by block, then table by table. At most 2^31 - 1 bags
// and places.
struct Bags {
  const BagTable* tables;  // of the place
  const std::int32_t* ids;
  std::int64_t count, blocks, b, columns;

  TRIREME_BOTH std::int64_t size() const { return blocks * count * b; }
  TRIREME_BOTH std::int64_t places() const { return blocks * columns * b; }
  TRIREME_BOTH const std::int32_t* of(std::int64_t block, const BagTable& t, std::int64_t sample) const {
    return ids + (block * columns + t.column) * b + sample * t.width;
  }
};

// What each id counts in its bag: 1, or its share in the mean.
template <class T>
TRIREME_BOTH T share_of(const BagTable& table, const std::int32_t* ids) {
  if (!table.mean) return T(1);
  std::int64_t n = 0;
  for (std::int64_t w = 0; w < table.width; ++w) n += ids[w] >= 0;
  return T(1) / T(n > 1 ? n : 1);
}

TRIREME_BOTH inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
TRIREME_BOTH inline double fused(double a, double b, double c) { return fma(a, b, c); }
TRIREME_BOTH inline float root(float x) { return sqrtf(x); }
TRIREME_BOTH inline double root(double x) { return sqrt(x); }

// out [size(), d] = the pooled rows of `rows` [*, d].
template <class T>
struct LookupJob {
  const T* rows;
  std::int64_t d;
  Bags bags;
  T* out;
};

enum class SparseRule : std::uint8_t { sgd, adagrad, rowwise_adagrad };

constexpr std::int64_t piece = 64;

// Sums the gradients [bags.size(), d] of each distinct row, then updates it once: sgd w -= lr g; adagrad m += g^2,
// w -= lr g / (sqrt(m) + eps); rowwise_adagrad the same with m += mean(g^2), one number a row. state: as rows, one a
// row, or null.
template <class T>
struct UpdateJob {
  T *rows, *state;
  std::int64_t d, all_rows;  // of all tables, below 2^32 - 1
  Bags bags;
  const T* gradient;
  SparseRule rule;
  double lr, eps;
  const float* device_lr;  // of the place; not null: in place of lr
  const float* skip;       // of the place; not null, and not 0: nothing changes
  void* scratch;           // as embedding_sort left it
};
// What comes before, and needs no gradient: places sorted by their row. The host's twin does that within the update.
struct SortJob {
  Bags bags;
  std::int64_t d, all_rows;  // as in UpdateJob
  std::size_t element;       // bytes of a T
  void* scratch;             // memory of the place, aligned to 256, until the update's work is done
};
// How much of it.
struct UpdateScratchJob {
  std::int64_t places, d;
  std::size_t element;  // bytes of a T
  std::size_t* bytes;   // of the host
};

// What is the same for all rows.
template <class T>
struct RowStep {
  T lr, eps;
};

// One element: g of the sum; m its state (adagrad), or what the row's has become (rowwise_adagrad).
template <class T>
TRIREME_BOTH void update_element(const RowStep<T>& s, SparseRule rule, T g, T& w, T* m, T row_state) {
  if (rule == SparseRule::sgd) {
    w = fused(-s.lr, g, w);
  } else if (rule == SparseRule::adagrad) {
    *m = fused(g, g, *m);
    w -= s.lr * g / (root(*m) + s.eps);
  } else {
    w -= s.lr * g / (root(row_state) + s.eps);
  }
}

// m of a row whose summed gradient is g [d].
template <class T>
TRIREME_BOTH T row_state(const T* g, std::int64_t d, T before) {
  T squares = 0;
  for (std::int64_t i = 0; i < d; ++i) squares = fused(g[i], g[i], squares);
  return before + squares / T(d);
}

extern Kernel<UpdateScratchJob> embedding_update_scratch;
extern Kernel<SortJob> embedding_sort;
extern Kernel<LookupJob<float>> embedding_lookup_f32;
extern Kernel<LookupJob<double>> embedding_lookup_f64;
extern Kernel<UpdateJob<float>> embedding_update_f32;
extern Kernel<UpdateJob<double>> embedding_update_f64;
inline void embedding_lookup(const LookupJob<float>& job, Place place) { embedding_lookup_f32(job, place); }
inline void embedding_lookup(const LookupJob<double>& job, Place place) { embedding_lookup_f64(job, place); }
inline void embedding_update(const UpdateJob<float>& job, Place place) { embedding_update_f32(job, place); }
inline void embedding_update(const UpdateJob<double>& job, Place place) { embedding_update_f64(job, place); }

}  // namespace trireme::kernels

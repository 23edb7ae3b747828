// One embedding table, held whole by one rank: pooled lookup of bags, and sparse updates.
//
// Samples lie in equal blocks, one from each rank. ids [P, b, w] i32, -1: no id; rows [P, b, d]; both may be strided in
// their first dimension and are dense in the others, so they may be views of what an exchange sent or received.
#pragma once
#include "data/tables/tables.h"
#include "framework/kernels/embedding.h"

#include <ATen/core/Tensor.h>

namespace trireme::nn {

// All rows of several tables, in one piece, so that one operator serves them all: what a GPU wants.
struct EmbeddingRows {
  at::Tensor weight, state;  // [rows, d]; as EmbeddingTable::state
  EmbeddingRows(std::int64_t rows, std::int64_t dim, kernels::SparseRule rule, at::TensorOptions options);
  EmbeddingRows part(std::int64_t first, std::int64_t rows) const;  // a view

  // ids i64 [n] -> rows [n, d].
  void lookup(const at::Tensor& ids, at::Tensor out) const;
  // As EmbeddingTable::update; gradient [n, d].
  void update(const at::Tensor& ids, const at::Tensor& gradient, kernels::SparseRule rule, double lr,
              const at::Tensor& skip);

 private:
  EmbeddingRows() = default;
};

class EmbeddingTable {
 public:
  // Weights U(-1/sqrt(rows), 1/sqrt(rows)), drawn from (seed, name, row), into `memory`.
  EmbeddingTable(const Table& table, const std::string& name, kernels::SparseRule rule, std::uint64_t seed,
                 EmbeddingRows memory);

  const Table& table() const { return table_; }
  const at::Tensor& weight() const { return rows_.weight; }  // [rows, d], a leaf
  at::Tensor& state() { return rows_.state; }                // of the rule: [rows, d], [rows] or undefined

  void lookup(const at::Tensor& ids, const at::Tensor& out) const;
  // Sums what samples ask of one row, then updates it once. skip: f32 scalar on the device, 1 = change nothing.
  void update(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip);
  // Elements of state for each row.
  static std::int64_t state_width(kernels::SparseRule rule, std::int64_t dim);

 private:
  at::Tensor shares(const at::Tensor& ids) const;

  Table table_;
  kernels::SparseRule rule_;
  EmbeddingRows rows_;
  kernels::DistinctIds distinct_;
};

}  // namespace trireme::nn

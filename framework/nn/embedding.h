// One embedding table, held whole by one rank: pooled lookup of bags, and sparse updates.
//
// Samples lie in equal blocks, one from each rank. ids [P, b, w] i32, -1: no id; rows [P, b, d]; both may be strided in
// their first dimension and are dense in the others, so they may be views of what an exchange sent or received.
#pragma once
#include "data/tables/tables.h"
#include "framework/kernels/embedding.h"

#include <ATen/core/Tensor.h>

namespace trireme::nn {

class EmbeddingTable {
 public:
  // Weights U(-1/sqrt(rows), 1/sqrt(rows)), drawn from (seed, name, row).
  EmbeddingTable(const Table& table, const std::string& name, std::int64_t dim, kernels::SparseRule rule,
                 std::uint64_t seed, at::ScalarType type, at::Device device);

  const Table& table() const { return table_; }
  const at::Tensor& weight() const { return weight_; }  // [rows, d], a leaf
  at::Tensor& state() { return state_; }                // of the rule: [rows, d], [rows] or undefined

  // DataError where an id is outside the table. Of ids on a device nothing is checked.
  void check(const at::Tensor& ids) const;
  void lookup(const at::Tensor& ids, const at::Tensor& out) const;
  // Sums what samples ask of one row, then updates it once. skip: f32 scalar on the device, 1 = change nothing.
  void update(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip);
  // Elements of state for each row.
  static std::int64_t state_width(kernels::SparseRule rule, std::int64_t dim);

 private:
  void update_on_device(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip);
  at::Tensor shares(const at::Tensor& ids) const;

  Table table_;
  kernels::SparseRule rule_;
  at::Tensor weight_, state_;
  kernels::DistinctIds distinct_;
};

}  // namespace trireme::nn

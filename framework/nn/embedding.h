// The embedding tables that one rank holds, in one piece of memory: pooled lookup of bags, and sparse updates, each of
// all tables at once.
#pragma once
#include "data/tables/tables.h"
#include "framework/kernels/embedding.h"

#include <ATen/core/Tensor.h>

namespace trireme::nn {

class EmbeddingTables {
 public:
  // Weights U(-1/sqrt(rows), 1/sqrt(rows)) of each table, drawn from (seed, its name, row). options: f32 or f64. There
  // may be no table at all.
  EmbeddingTables(std::vector<Table> tables, const std::vector<std::string>& names, std::int64_t dim,
                  kernels::SparseRule rule, std::uint64_t seed, at::TensorOptions options);

  std::size_t size() const { return tables_.size(); }
  const Table& table(std::size_t k) const { return tables_[k]; }
  std::int64_t columns() const { return columns_; }                      // the sum of the widths
  const at::Tensor& weight(std::size_t k) const { return weights_[k]; }  // [rows, d], a leaf
  at::Tensor& state(std::size_t k) { return states_[k]; }                // of the rule: [rows, d], [rows] or undefined
  at::TensorOptions options() const { return all_.options(); }

  // ids i32 [P, b * columns()], in each of P blocks of samples table after table [b, width], -1: no id -> out
  // [P, tables, b, d]. On the device of the tables, contiguous.
  void lookup(const at::Tensor& ids, const at::Tensor& out) const;
  // Which rows are asked for how often, which update() wants to know: it needs no gradient, and may be enqueued beside
  // what makes them. Memory comes from the current stream, work goes to that of sort().
  at::Tensor sort_memory(const at::Tensor& ids) const;
  void sort(const at::Tensor& ids, std::int64_t b, const at::Tensor& memory);
  // Sums what samples ask of one row, then updates it once; gradient as `out`. Tables that `freeze` names stay as they
  // are. skip: f32 scalar on the device, 1 = change nothing; or undefined. device_lr: f32 scalar there in place of lr;
  // or undefined. sorted: the memory that sort() filled; undefined: it is called here.
  void update(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip,
              const at::Tensor& device_lr = {}, const at::Tensor& sorted = {});
  // Elements of state for each row.
  static std::int64_t state_width(kernels::SparseRule rule, std::int64_t dim);

 private:
  kernels::Bags bags_of(const at::Tensor& ids, std::int64_t b) const;
  void publish();

  const std::vector<Table> tables_;
  const std::int64_t dim_;
  const kernels::SparseRule rule_;
  std::int64_t columns_ = 0;
  at::Tensor all_, all_state_;
  std::vector<at::Tensor> weights_, states_;
  std::vector<kernels::BagTable> bag_tables_;
  at::Tensor published_;  // bag_tables_ where the tables are, u8
};

}  // namespace trireme::nn

#include "recipes/dlrm/combine.h"

#include "framework/base/tensor.h"
#include "framework/kernels/equal_ids.h"

#include <cstring>
#include <span>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

at::Tensor bytes_of(std::span<const kernels::BagTable> tables) {
  const at::Tensor host = at::empty({std::int64_t(tables.size_bytes())}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), tables.data(), tables.size_bytes());
  return host;
}

at::Tensor bytes_beside(const at::Tensor& like, std::int64_t n) {
  return at::empty({n}, like.options().dtype(at::kByte));
}

// Each sample asks the one table that all make for where its group begins.
kernels::Bags bags_of(const at::Tensor& table, const Groups& groups) {
  return {static_cast<const kernels::BagTable*>(table.const_data_ptr()),
          groups.first.const_data_ptr<std::int32_t>(),
          1,
          1,
          groups.first.numel(),
          1};
}

}  // namespace

Grouping::Grouping(const std::vector<std::int64_t>& widths) : count_(std::ssize(widths)) {
  std::vector<kernels::BagTable> tables;
  for (const std::int64_t w : widths) tables.push_back({0, 0, columns_, w, 0, 0}), columns_ += w;
  tables_ = bytes_of(tables);
}

Groups Grouping::operator()(const at::Tensor& ids, std::int64_t b) {
  tables_ = to_device(tables_, ids.device());
  const kernels::Bags bags{static_cast<const kernels::BagTable*>(tables_.const_data_ptr()),
                           ids.const_data_ptr<std::int32_t>(),
                           count_,
                           ids.size(0),
                           b,
                           columns_};
  const at::Tensor scratch = bytes_beside(ids, kernels::equal_ids_scratch(bags.size()));
  Groups g{at::empty({bags.blocks, count_, b}, ids.options()),
           at::empty({bags.blocks, count_, b}, ids.options().dtype(at::kFloat))};
  kernels::equal_ids(
      {bags, g.first.mutable_data_ptr<std::int32_t>(), g.times.mutable_data_ptr<float>(), scratch.mutable_data_ptr()},
      buffer_of(ids).place);
  return g;
}

void Combiner::prepare(const Groups& groups, std::int64_t d) {
  const std::int64_t rows = groups.first.numel();
  at::Tensor& known = tables_[rows];
  if (!known.defined()) {
    const kernels::BagTable table{0, rows, 0, 1, 0, 1};
    known = to_device(bytes_of({&table, 1}), groups.first.device());
  }
  table_ = known;
  groups_ = groups;
  const Place place = buffer_of(groups.first).place;
  std::size_t bytes = 0;
  kernels::embedding_update_scratch({rows, d, sizeof(float), &bytes}, place);
  scratch_ = bytes_beside(groups.times, std::int64_t(bytes));
  kernels::embedding_sort({bags_of(table_, groups), d, rows, sizeof(float), scratch_.mutable_data_ptr()}, place);
}

at::Tensor Combiner::combined(const at::Tensor& gradient) const {
  const at::NoGradGuard no_grad;
  const std::int64_t rows = groups_.first.numel(), d = gradient.size(2);
  at::Tensor sums = at::zeros_like(gradient, at::MemoryFormat::Contiguous);
  const at::Tensor from = gradient.contiguous();
  kernels::embedding_update({.rows = sums.mutable_data_ptr<float>(),
                             .state = nullptr,
                             .d = d,
                             .all_rows = rows,
                             .bags = bags_of(table_, groups_),
                             .gradient = from.const_data_ptr<float>(),
                             .rule = kernels::SparseRule::sgd,
                             .lr = -1,
                             .eps = 0,
                             .device_lr = nullptr,
                             .skip = nullptr,
                             .scratch = scratch_.mutable_data_ptr()},
                            buffer_of(sums).place);
  return sums.mul_(groups_.times.view({gradient.size(0), gradient.size(1), 1}).clamp_min(1).rsqrt());
}

void restore(at::Tensor& received, const Groups& groups) {
  const at::NoGradGuard no_grad;
  received.mul_(groups.times.view({received.size(0), received.size(1), 1}).sqrt());
}

}  // namespace trireme::dlrm

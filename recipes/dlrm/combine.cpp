#include "recipes/dlrm/combine.h"

#include "framework/base/tensor.h"
#include "framework/kernels/embedding.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

// i32 [blocks, tables, b]: equal within a table where samples are of one group, negative where they asked for no row.
at::Tensor keys_of(const at::Tensor& ids, const std::vector<std::int64_t>& widths, std::int64_t b) {
  const std::int64_t blocks = ids.size(0), tables = std::ssize(widths);
  if (std::all_of(widths.begin(), widths.end(), [](std::int64_t w) { return w == 1; }))
    return ids.view({blocks, tables, b});
  std::vector<at::Tensor> keys;
  std::int64_t column = 0;
  for (const std::int64_t w : widths) {
    const at::Tensor asked = ids.narrow(1, column * b, w * b);
    keys.push_back(w == 1 ? asked
                          : at::where(asked.view({blocks, b, w}).amax(-1).ge(0), at::arange(b, ids.options()), -1));
    column += w;
  }
  return at::stack(keys, 1);
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

Groups groups_of(const at::Tensor& ids, const std::vector<std::int64_t>& widths, std::int64_t b) {
  const at::NoGradGuard no_grad;
  const at::Tensor keys = keys_of(ids, widths, b);
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
  // Where in the sorted row the group of each began.
  const at::Tensor place = at::arange(b, order.options()), zero = at::zeros({}, order.options());
  at::Tensor begins = at::ones(keys.sizes(), keys.options().dtype(at::kBool));
  begins.narrow(-1, 1, b - 1).copy_(sorted.narrow(-1, 1, b - 1).ne(sorted.narrow(-1, 0, b - 1)));
  const at::Tensor begin = std::get<0>(at::cummax(at::where(begins, place, zero), -1));
  const at::Tensor first = at::empty_like(order).scatter_(-1, order, order.gather(-1, begin));
  const at::Tensor before = at::arange(keys.size(1), order.options()).mul_(b).view({-1, 1});
  const at::Tensor asks = keys.ge(0);
  Groups g{at::where(asks, first + before, -1).to(at::kInt), at::zeros(keys.sizes(), keys.options().dtype(at::kFloat))};
  g.times.scatter_add_(-1, first, asks.to(at::kFloat));
  return g;
}

void Combiner::prepare(const Groups& groups, std::int64_t d) {
  const std::int64_t rows = groups.first.numel();
  if (!groups_.first.defined() || groups_.first.numel() != rows) {
    const kernels::BagTable table{0, rows, 0, 1, 0, 1};
    const at::Tensor host = at::empty({sizeof table}, at::kByte);
    std::memcpy(host.mutable_data_ptr(), &table, sizeof table);
    table_ = to_device(host, groups.first.device());
  }
  groups_ = groups;
  const Place place = buffer_of(groups.first).place;
  std::size_t bytes = 0;
  kernels::embedding_update_scratch({rows, d, sizeof(float), &bytes}, place);
  if (!scratch_.defined() || scratch_.nbytes() < bytes)
    scratch_ = at::empty({std::int64_t(bytes)}, groups.times.options().dtype(at::kByte));
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

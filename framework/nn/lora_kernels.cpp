// The LoRA path by own grouped kernels, and dropout for all backends.
#include "framework/base/tensor.h"
#include "framework/nn/lora_pass.h"

namespace trireme::nn {
namespace {

template <class T>
at::Tensor bytes_on(const std::vector<T>& items, const at::Tensor& like) {
  if (items.empty()) return {};
  at::Tensor host = at::empty({std::int64_t(items.size() * sizeof(T))}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), items.data(), items.size() * sizeof(T));
  return to_device(host, like.device());
}

template <class T>
const T* array_of(const at::Tensor& bytes) {
  return bytes.defined() ? static_cast<const T*>(bytes.const_data_ptr()) : nullptr;
}

kernels::GroupedTable table_of(const LoraPass& pass, std::int64_t target, std::int64_t tokens) {
  const auto groups = std::int64_t(pass.groups.size());
  return {.rows = array_of<kernels::GroupedRows>(pass.rows),
          .adapters = array_of<kernels::GroupedAdapter>(pass.adapters) + target * groups,
          .blocks = array_of<kernels::GroupedBlock>(pass.blocks),
          .groups = groups,
          .block_count = pass.block_count,
          .longest = pass.longest,
          .rank_stride = pass.most_rank[std::size_t(target)],
          .tokens = tokens};
}

at::Tensor partial_sums(const at::Tensor& like, std::int64_t splits, std::int64_t size) {
  return like.is_cpu() || splits == 1 ? at::Tensor() : at::empty({splits * size}, like.options().dtype(at::kFloat));
}

float* data_or_null(const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; }

at::Tensor shrink(const kernels::GroupedTable& table, bool backward, const at::Tensor& x) {
  at::Tensor s = at::empty({table.tokens, table.rank_stride}, x.options());
  const at::Tensor partial = partial_sums(x, kernels::grouped_column_splits(table, x.size(1)), s.numel());
  kernels::grouped_shrink({.table = table,
                           .type = dtype_of(x),
                           .backward = backward,
                           .x = x.const_data_ptr(),
                           .width = x.size(1),
                           .s = s.mutable_data_ptr(),
                           .partial = data_or_null(partial)},
                          buffer_of(x).place);
  return s;
}

void expand(const kernels::GroupedTable& table, bool backward, const at::Tensor& s, at::Tensor& y,
            std::uint32_t module) {
  kernels::grouped_expand({.table = table,
                           .type = dtype_of(y),
                           .backward = backward,
                           .s = s.const_data_ptr(),
                           .y = y.mutable_data_ptr(),
                           .width = y.size(1),
                           .module = module},
                          buffer_of(y).place);
}

at::Tensor forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  const auto table = table_of(pass, target, x.size(0));
  const at::Tensor s = shrink(table, false, x);
  expand(table, false, s, y, 0);
  return s;
}

void backward(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x, const at::Tensor& s,
              const at::Tensor& dy, at::Tensor& dx) {
  const auto table = table_of(pass, target, x.size(0));
  const at::Tensor ds = shrink(table, true, dy);
  if (dx.defined()) expand(table, true, ds, dx, module);
  const auto size = table.groups * (x.size(1) + dy.size(1)) * table.rank_stride;
  const at::Tensor partial = partial_sums(x, kernels::grouped_token_splits(table, x.size(1), dy.size(1)), size);
  kernels::grouped_outer({.table = table,
                          .type = dtype_of(x),
                          .x = x.const_data_ptr(),
                          .ds = ds.const_data_ptr(),
                          .dy = dy.const_data_ptr(),
                          .s = s.const_data_ptr(),
                          .in = x.size(1),
                          .out = dy.size(1),
                          .partial = data_or_null(partial)},
                         buffer_of(x).place);
}

// Into a tensor of its own, or in place.
void drop(const LoraPass& pass, std::uint32_t module, const at::Tensor& from, at::Tensor& to) {
  kernels::grouped_dropout({.rows = array_of<kernels::GroupedRows>(pass.rows),
                            .groups = std::int64_t(pass.groups.size()),
                            .type = dtype_of(from),
                            .from = from.const_data_ptr(),
                            .to = to.mutable_data_ptr(),
                            .tokens = from.size(0),
                            .width = from.size(1),
                            .module = module},
                           buffer_of(from).place);
}

at::Tensor dropped(const LoraPass& pass, std::uint32_t module, const at::Tensor& x) {
  if (!pass.dropout) return x;
  at::Tensor left = at::empty_like(x);
  drop(pass, module, x, left);
  return left;
}

const LoraArm& arm_of(const LoraPass& pass) {
  switch (pass.backend) {
    case LoraBackend::kernels:
      return lora_kernels;
    case LoraBackend::grouped_mm:
      return lora_grouped_mm;
    case LoraBackend::bmm:
      return lora_bmm;
    case LoraBackend::loop:
      return lora_loop;
    case LoraBackend::wide:
      return lora_wide;
  }
  return lora_kernels;
}

}  // namespace

const LoraArm lora_kernels{forward, backward};

void make_tables(LoraPass& pass, std::size_t targets, const at::Tensor& like) {
  std::vector<kernels::GroupedRows> rows;
  std::vector<kernels::GroupedBlock> blocks;
  for (const auto& group : pass.groups) {
    const auto count = group.rows.last - group.rows.first;
    for (std::int64_t b = 0; b * kernels::grouped_rows < count; ++b)
      blocks.push_back({std::int32_t(rows.size()), std::int32_t(b)});
    rows.push_back({std::int32_t(group.rows.first), std::int32_t(group.rows.last), group.dropout});
    pass.longest = std::max(pass.longest, count);
  }
  std::vector<kernels::GroupedAdapter> adapters;
  pass.most_rank.assign(targets, 0);
  for (std::size_t t = 0; t < targets; ++t)
    for (const auto& group : pass.groups) {
      const LoraAdapter& w = (*group.adapters)[t];
      adapters.emplace_back();
      if (!w.a.defined()) continue;
      adapters.back() = {w.a.const_data_ptr(),    w.b.const_data_ptr(),      w.da.mutable_data_ptr(),
                         w.db.mutable_data_ptr(), std::int32_t(w.a.size(0)), float(w.scale)};
      pass.most_rank[t] = std::max(pass.most_rank[t], w.a.size(0));
    }
  pass.block_count = std::int64_t(blocks.size());
  pass.rows = bytes_on(rows, like);
  pass.adapters = bytes_on(adapters, like);
  pass.blocks = bytes_on(blocks, like);
}

at::Tensor lora_forward(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x,
                        at::Tensor& y) {
  if (pass.groups.empty() || pass.most_rank[std::size_t(target)] == 0) return {};
  return arm_of(pass).forward(pass, target, dropped(pass, module, x), y);
}

void lora_backward(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x,
                   const at::Tensor& s, const at::Tensor& dy, at::Tensor& dx) {
  if (pass.groups.empty() || pass.most_rank[std::size_t(target)] == 0) return;
  const at::Tensor left = dropped(pass, module, x);  // computed again rather than kept
  if (!pass.dropout || !dx.defined() || masks_itself(pass))
    return arm_of(pass).backward(pass, target, module, left, s, dy, dx);
  at::Tensor change = at::zeros_like(dx);
  arm_of(pass).backward(pass, target, module, left, s, dy, change);
  drop(pass, module, change, change);
  dx.add_(change);
}

}  // namespace trireme::nn

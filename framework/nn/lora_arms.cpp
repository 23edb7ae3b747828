#include "framework/nn/lora_pass.h"

namespace trireme::nn {
namespace {

at::Tensor rows_of(const at::Tensor& t, const SlotRows& r) { return t.narrow(0, r.first, r.last - r.first); }

// Calls f(group, adapter) for the groups that adapt `target`.
template <class F>
void each_adapter(const LoraPass& pass, std::int64_t target, F f) {
  for (const auto& group : pass.groups) {
    const auto& adapter = (*group.adapters)[std::size_t(target)];
    if (adapter.a.defined()) f(group, adapter);
  }
}

at::Tensor loop_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  std::vector<at::Tensor> kept;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& adapter) {
    const at::Tensor s = at::mm(rows_of(x, group.rows), adapter.a.t());
    rows_of(y, group.rows).addmm_(s, adapter.b.t(), 1, adapter.scale);
    kept.push_back(s.flatten());
  });
  return kept.empty() ? at::Tensor() : at::cat(kept);
}

void loop_backward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, const at::Tensor& kept,
                   const at::Tensor& dy, at::Tensor& dx) {
  std::int64_t at = 0;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& adapter) {
    const auto rows = group.rows.last - group.rows.first, rank = adapter.a.size(0);
    const at::Tensor s = kept.narrow(0, at, rows * rank).view({rows, rank}), d = rows_of(dy, group.rows);
    at += rows * rank;
    const at::Tensor ds = at::mm(d, adapter.b).mul_(adapter.scale);
    adapter.da.add_(at::mm(ds.t(), rows_of(x, group.rows)));
    adapter.db.add_(at::mm(d.t(), s), adapter.scale);  // the paper prints it without the scale
    if (dx.defined()) rows_of(dx, group.rows).addmm_(ds, adapter.a);
  });
}

}  // namespace

at::Tensor lora_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  return loop_forward(pass, target, x, y);
}

void lora_backward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, const at::Tensor& s,
                   const at::Tensor& dy, at::Tensor& dx) {
  loop_backward(pass, target, x, s, dy, dx);
}

}  // namespace trireme::nn

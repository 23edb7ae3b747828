// The LoRA path without own kernels: what the kernels are judged by, and what they are compared with.
#include "framework/nn/lora_pass.h"

#include <ATen/ops/_grouped_mm.h>

namespace trireme::nn {
namespace {

// One job after the other, as mLoRA does (arXiv 2312.02515).
at::Tensor loop_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  std::vector<at::Tensor> kept;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& w) {
    const at::Tensor s = at::mm(rows_of(x, group.rows), w.a.t());
    rows_of(y, group.rows).addmm_(s, w.b.t(), 1, w.scale);
    kept.push_back(s.flatten());
  });
  return at::cat(kept);
}

void loop_backward(const LoraPass& pass, std::int64_t target, std::uint32_t, const at::Tensor& x,
                   const at::Tensor& kept, const at::Tensor& dy, at::Tensor& dx) {
  std::int64_t at = 0;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& w) {
    const auto rows = group.rows.last - group.rows.first, rank = w.a.size(0);
    const at::Tensor s = kept.narrow(0, at, rows * rank).view({rows, rank}), d = rows_of(dy, group.rows);
    at += rows * rank;
    const at::Tensor ds = at::mm(d, w.b).mul_(w.scale);
    w.da.add_(at::mm(ds.t(), rows_of(x, group.rows)));
    w.db.add_(at::mm(d.t(), s), w.scale);  // the paper prints it without the scale
    if (dx.defined()) rows_of(dx, group.rows).addmm_(ds, w.a);
  });
}

// Rows as products of whole matrices see them: all up to the last group's end; those of nobody have an adapter of
// zeros.
struct Stack {
  std::vector<const LoraAdapter*> adapters;  // a segment each; null: nobody's
  std::vector<SlotRows> rows;
  at::Tensor a, b;  // [segments, rank, in], [segments, out, rank], scales in b
};

Stack stacked(const LoraPass& pass, std::int64_t target, bool with_gaps) {
  Stack s;
  std::int64_t end = 0;
  const auto add = [&](const LoraAdapter* w, std::int64_t first, std::int64_t last) {
    s.adapters.push_back(w);
    s.rows.push_back({0, first, last});
    end = last;
  };
  const LoraAdapter* any = nullptr;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& w) {
    if (with_gaps && group.rows.first > end) add(nullptr, end, group.rows.first);
    add(&w, group.rows.first, group.rows.last);
    any = &w;
  });
  const auto segments = std::int64_t(s.rows.size()), rank = pass.most_rank[std::size_t(target)];
  s.a = at::zeros({segments, rank, any->a.size(1)}, any->a.options());
  s.b = at::zeros({segments, any->b.size(0), rank}, any->b.options());
  for (std::int64_t i = 0; i < segments; ++i)
    if (const LoraAdapter* w = s.adapters[std::size_t(i)]) {
      s.a[i].narrow(0, 0, w->a.size(0)).copy_(w->a);
      s.b[i].narrow(1, 0, w->b.size(1)).copy_(w->b).mul_(w->scale);
    }
  return s;
}

// Gradients of stacks; that of b without the scale yet.
void add_gradients(const Stack& s, const at::Tensor& da, const at::Tensor& db) {
  for (std::size_t i = 0; i < s.adapters.size(); ++i)
    if (const LoraAdapter* w = s.adapters[i]) {
      w->da.add_(da[std::int64_t(i)].narrow(0, 0, w->da.size(0)));
      w->db.add_(db[std::int64_t(i)].narrow(1, 0, w->db.size(1)), w->scale);
    }
}

at::Tensor ends(const Stack& s, const at::Tensor& like) {
  std::vector<std::int32_t> last;
  for (const auto& r : s.rows) last.push_back(std::int32_t(r.last));
  return at::tensor(last, at::kInt).to(like.device());
}

at::Tensor grouped_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  const Stack w = stacked(pass, target, true);
  const at::Tensor offsets = ends(w, x);
  const auto rows = w.rows.back().last;
  const at::Tensor s = at::_grouped_mm(x.narrow(0, 0, rows), w.a.transpose(1, 2), offsets);
  y.narrow(0, 0, rows).add_(at::_grouped_mm(s, w.b.transpose(1, 2), offsets));
  return s;
}

void grouped_backward(const LoraPass& pass, std::int64_t target, std::uint32_t, const at::Tensor& x,
                      const at::Tensor& s, const at::Tensor& dy, at::Tensor& dx) {
  const Stack w = stacked(pass, target, true);
  const at::Tensor offsets = ends(w, x);
  const auto rows = w.rows.back().last;
  const at::Tensor d = dy.narrow(0, 0, rows), ds = at::_grouped_mm(d, w.b, offsets);
  if (dx.defined()) dx.narrow(0, 0, rows).add_(at::_grouped_mm(ds, w.a, offsets));
  add_gradients(w, at::_grouped_mm(ds.t(), x.narrow(0, 0, rows), offsets), at::_grouped_mm(d.t(), s, offsets));
}

// [tokens, width] -> [groups, rows of the longest, width], zeros behind the end.
at::Tensor padded(const Stack& w, const at::Tensor& t) {
  std::int64_t longest = 0;
  for (const auto& r : w.rows) longest = std::max(longest, r.last - r.first);
  at::Tensor all = at::zeros({std::int64_t(w.rows.size()), longest, t.size(1)}, t.options());
  for (std::size_t i = 0; i < w.rows.size(); ++i)
    all[std::int64_t(i)].narrow(0, 0, w.rows[i].last - w.rows[i].first).copy_(rows_of(t, w.rows[i]));
  return all;
}

void add_rows(const Stack& w, const at::Tensor& all, at::Tensor& to) {
  for (std::size_t i = 0; i < w.rows.size(); ++i)
    rows_of(to, w.rows[i]).add_(all[std::int64_t(i)].narrow(0, 0, w.rows[i].last - w.rows[i].first));
}

at::Tensor bmm_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  const Stack w = stacked(pass, target, false);
  const at::Tensor s = at::bmm(padded(w, x), w.a.transpose(1, 2));
  add_rows(w, at::bmm(s, w.b.transpose(1, 2)), y);
  return s;
}

void bmm_backward(const LoraPass& pass, std::int64_t target, std::uint32_t, const at::Tensor& x, const at::Tensor& s,
                  const at::Tensor& dy, at::Tensor& dx) {
  const Stack w = stacked(pass, target, false);
  const at::Tensor d = padded(w, dy), ds = at::bmm(d, w.b);
  if (dx.defined()) add_rows(w, at::bmm(ds, w.a), dx);
  add_gradients(w, at::bmm(ds.transpose(1, 2), padded(w, x)), at::bmm(d.transpose(1, 2), s));
}

// Adapters side by side: [ranks, in], [out, ranks], and the scale where a row may use a column, [tokens, ranks].
struct Wide {
  at::Tensor a, b, mask;
};

Wide side_by_side(const LoraPass& pass, std::int64_t target, std::int64_t tokens) {
  std::vector<at::Tensor> a, b;
  std::int64_t ranks = 0;
  each_adapter(pass, target, [&](const LoraGroup&, const LoraAdapter& w) {
    a.push_back(w.a);
    b.push_back(w.b);
    ranks += w.a.size(0);
  });
  Wide all{at::cat(a), at::cat(b, 1), at::zeros({tokens, ranks}, a[0].options())};
  std::int64_t at = 0;
  each_adapter(pass, target, [&](const LoraGroup& group, const LoraAdapter& w) {
    rows_of(all.mask, group.rows).narrow(1, at, w.a.size(0)).fill_(w.scale);
    at += w.a.size(0);
  });
  return all;
}

// Every row with every adapter, of which most is thrown away, as LoRAFusion does (arXiv 2510.00206).
at::Tensor wide_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y) {
  const Wide w = side_by_side(pass, target, x.size(0));
  const at::Tensor s = at::mm(x, w.a.t()).mul_(w.mask);
  y.addmm_(s, w.b.t());
  return s;
}

void wide_backward(const LoraPass& pass, std::int64_t target, std::uint32_t, const at::Tensor& x, const at::Tensor& s,
                   const at::Tensor& dy, at::Tensor& dx) {
  const Wide w = side_by_side(pass, target, x.size(0));
  const at::Tensor ds = at::mm(dy, w.b).mul_(w.mask);
  if (dx.defined()) dx.addmm_(ds, w.a);
  const at::Tensor da = at::mm(ds.t(), x), db = at::mm(dy.t(), s);  // s has the scale in it
  std::int64_t at = 0;
  each_adapter(pass, target, [&](const LoraGroup&, const LoraAdapter& adapter) {
    const auto rank = adapter.a.size(0);
    adapter.da.add_(da.narrow(0, at, rank));
    adapter.db.add_(db.narrow(1, at, rank));
    at += rank;
  });
}

}  // namespace

const LoraArm lora_loop{loop_forward, loop_backward};
const LoraArm lora_grouped_mm{grouped_forward, grouped_backward};
const LoraArm lora_bmm{bmm_forward, bmm_backward};
const LoraArm lora_wide{wide_forward, wide_backward};

}  // namespace trireme::nn

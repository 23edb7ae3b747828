// The LoRA path by own grouped kernels, and dropout for all backends.
#include "framework/base/tensor.h"
#include "framework/kernels/grouped_swiglu.h"
#include "framework/nn/checkpoint.h"
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

const kernels::GroupedAdapter* adapters_of(const LoraPass& pass, const LoraTarget& t) {
  return array_of<kernels::GroupedAdapter>(pass.adapters) + t.index * std::int64_t(pass.groups.size());
}

// Up to three targets that are adapted by anybody.
struct Some {
  const LoraCall& call;
  std::vector<std::size_t> which;
  kernels::GroupedTable table;

  const LoraTarget& target(std::size_t k) const { return call.targets[which[k]]; }
  std::size_t size() const { return which.size(); }
};

std::vector<Some> in_threes(const LoraCall& call, std::int64_t tokens) {
  const LoraPass& pass = *call.pass;
  std::vector<Some> all;
  for (std::size_t i = 0; i < call.targets.size(); ++i) {
    const auto rank = pass.most_rank[std::size_t(call.targets[i].index)];
    if (rank == 0) continue;
    if (all.empty() || all.back().size() == std::size_t(kernels::grouped_most_targets))
      all.push_back({call,
                     {},
                     {.rows = array_of<kernels::GroupedRows>(pass.rows),
                      .blocks = array_of<kernels::GroupedBlock>(pass.blocks),
                      .groups = std::int64_t(pass.groups.size()),
                      .block_count = pass.block_count,
                      .longest = pass.longest,
                      .tokens = tokens}});
    all.back().which.push_back(i);
    all.back().table.rank_stride = std::max(all.back().table.rank_stride, rank);
  }
  return all;
}

// The scratch of a job that is cut into parts, on a GPU.
template <class Job>
at::Tensor partial_sums(Job& job, const at::Tensor& like, std::int64_t size) {
  const auto splits = kernels::grouped_splits(job);
  if (like.is_cpu() || splits == 1) return {};
  at::Tensor sums = at::empty({splits * size}, like.options().dtype(at::kFloat));
  job.partial = sums.mutable_data_ptr<float>();
  return sums;
}

// x: one a target. -> [targets, tokens, rank_stride].
at::Tensor shrink(const Some& some, bool backward, const std::vector<at::Tensor>& x) {
  at::Tensor s = at::empty({std::int64_t(some.size()), some.table.tokens, some.table.rank_stride}, x[0].options());
  kernels::GroupedShrink job{
      .table = some.table, .type = dtype_of(s), .backward = backward, .targets = int(some.size())};
  for (std::size_t k = 0; k < some.size(); ++k)
    job.target[k] = {adapters_of(*some.call.pass, some.target(k)), x[k].const_data_ptr(), x[k].size(1),
                     s[std::int64_t(k)].mutable_data_ptr()};
  const at::Tensor partial = partial_sums(job, s, s.numel());
  kernels::grouped_shrink(job, buffer_of(s).place);
  return s;
}

void expand_forward(const Some& some, const at::Tensor& s, std::vector<at::Tensor>& y, bool add) {
  kernels::GroupedExpand job{.table = some.table, .type = dtype_of(s), .add = add, .targets = int(some.size())};
  for (std::size_t k = 0; k < some.size(); ++k) {
    const LoraTarget& t = some.target(k);
    at::Tensor& to = y[some.which[k]];
    job.target[k] = {adapters_of(*some.call.pass, t), s[std::int64_t(k)].const_data_ptr(), to.mutable_data_ptr(),
                     to.size(1), t.bias.defined() ? t.bias.const_data_ptr() : nullptr};
  }
  kernels::grouped_expand(job, buffer_of(s).place);
}

// With dropout a target at a time, since each has a mask of its own.
void expand_backward(const Some& some, const at::Tensor& ds, at::Tensor& dx, bool add) {
  kernels::GroupedExpand job{.table = some.table, .type = dtype_of(ds), .backward = true, .add = add};
  for (std::size_t k = 0; k < some.size(); ++k) {
    const LoraTarget& t = some.target(k);
    job.target[job.targets++] = {.adapters = adapters_of(*some.call.pass, t),
                                 .s = ds[std::int64_t(k)].const_data_ptr(),
                                 .y = dx.mutable_data_ptr(),
                                 .width = dx.size(1),
                                 .module = t.module};
    if (k + 1 < some.size() && !some.call.pass->dropout) continue;
    kernels::grouped_expand(job, buffer_of(ds).place);
    job.targets = 0;
    job.add = true;
  }
}

// Do gradients of these targets hold anything that more is added to? One launch writes or adds: where some do, those
// that do not become zeros.
bool gradients_begun(const Some& some) {
  bool none = true;
  const auto each = [&](auto f) {
    for (std::size_t k = 0; k < some.size(); ++k)
      each_adapter(*some.call.pass, some.target(k).index, [&](const LoraGroup&, const LoraAdapter& w) { f(w); });
  };
  each([&](const LoraAdapter& w) { none = none && w.empty; });
  each([&](const LoraAdapter& w) { none ? void(w.empty = false) : w.settle(); });
  return !none;
}

void outer(const Some& some, const std::vector<at::Tensor>& x, const at::Tensor& ds, const std::vector<at::Tensor>& dy,
           const at::Tensor& s) {
  kernels::GroupedOuter job{
      .table = some.table, .type = dtype_of(s), .add = gradients_begun(some), .targets = int(some.size())};
  for (std::size_t k = 0; k < some.size(); ++k)
    job.target[k] = {adapters_of(*some.call.pass, some.target(k)),
                     x[k].const_data_ptr(),
                     ds[std::int64_t(k)].const_data_ptr(),
                     dy[k].const_data_ptr(),
                     s[std::int64_t(k)].const_data_ptr(),
                     x[k].size(1),
                     dy[k].size(1)};
  const auto size = some.table.groups * kernels::grouped_columns(job) * some.table.rank_stride;
  const at::Tensor partial = partial_sums(job, s, size);
  kernels::grouped_outer(job, buffer_of(s).place);
}

std::vector<at::Tensor> inputs(const Some& some, const at::Tensor& x) {
  std::vector<at::Tensor> all;
  for (std::size_t k = 0; k < some.size(); ++k) all.push_back(dropped(*some.call.pass, some.target(k).module, x));
  return all;
}

std::vector<at::Tensor> own_of(const Some& some, const std::vector<at::Tensor>& all) {
  std::vector<at::Tensor> own;
  for (const auto i : some.which) own.push_back(all[i]);
  return own;
}

// Is every row somebody's who adapts all of these targets?
bool everybodys(const LoraCall& call, std::int64_t tokens) {
  bool all = call.pass->rows_from_0 == tokens;
  for (const auto& t : call.targets) all = all && call.pass->by_all[std::size_t(t.index)];
  return all;
}

kernels::SwigluPath path_of(const Some& some, std::size_t k, const at::Tensor& s) {
  return {adapters_of(*some.call.pass, some.target(k)), s[std::int64_t(k)].const_data_ptr(), some.table.rank_stride};
}

// Of gate and up with their S, and what the base made of them.
kernels::GroupedSwiglu swiglu_job(const Some& both, const at::Tensor& s, const at::Tensor& gate, const at::Tensor& up) {
  kernels::GroupedSwiglu job;
  job.table = both.table;
  job.type = dtype_of(gate);
  job.width = gate.size(1);
  job.of_gate = path_of(both, 0, s);
  job.of_up = path_of(both, 1, s);
  job.gate = gate.const_data_ptr();
  job.up = up.const_data_ptr();
  return job;
}

// Into a tensor of its own, or in place.
void drop_into(const LoraPass& pass, std::uint32_t module, const at::Tensor& from, at::Tensor& to) {
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

}  // namespace

void drop(const LoraPass& pass, std::uint32_t module, at::Tensor& x) { drop_into(pass, module, x, x); }

at::Tensor dropped(const LoraPass& pass, std::uint32_t module, const at::Tensor& x) {
  if (!pass.dropout) return x;
  at::Tensor left = at::empty_like(x);
  drop_into(pass, module, x, left);
  return left;
}

bool lora_comes_first(const LoraCall& call, std::int64_t tokens) {
  bool all = everybodys(call, tokens);
  for (const auto& t : call.targets) all = all && !t.fp8;  // no FP8 product adds onto what is there
  return all;
}

std::vector<at::Tensor> kernels_forward(const LoraCall& call, const at::Tensor& x, std::vector<at::Tensor>& kept) {
  const bool first = lora_comes_first(call, x.size(0));
  const std::vector<Some> parts = in_threes(call, x.size(0));
  const std::size_t begin = kept.size();
  std::vector<at::Tensor> y;
  BaseProducts base(x);
  for (const Some& some : parts) kept.push_back(shrink(some, false, inputs(some, x)));
  for (const auto& t : call.targets)
    y.push_back(first ? at::empty({x.size(0), t.weight.size(0)}, x.options()) : base(t));
  for (std::size_t i = 0; i < parts.size(); ++i) expand_forward(parts[i], kept[begin + i], y, !first);
  for (std::size_t i = 0; first && i < y.size(); ++i) y[i].addmm_(x, call.targets[i].weight.t());
  return y;
}

at::Tensor kernels_backward(const LoraCall& call, const at::Tensor& x, const std::vector<at::Tensor>& kept,
                            const std::vector<at::Tensor>& dy, bool wanted) {
  const std::vector<Some> parts = in_threes(call, x.size(0));
  std::vector<at::Tensor> ds;
  at::Tensor dx;
  for (const Some& some : parts) ds.push_back(shrink(some, true, own_of(some, dy)));
  const auto expands = [&] {
    for (std::size_t i = 0; wanted && i < parts.size(); ++i) {
      const bool add = dx.defined();
      if (!add) dx = at::empty_like(x);
      expand_backward(parts[i], ds[i], dx, add);
    }
  };
  const bool first = lora_comes_first(call, x.size(0));
  if (first) expands();
  for (std::size_t i = 0; wanted && i < call.targets.size(); ++i) add_base_gradient(call.targets[i], dy[i], dx);
  for (std::size_t i = 0; i < parts.size(); ++i)
    outer(parts[i], inputs(parts[i], x), ds[i], own_of(parts[i], dy), kept[i]);
  if (!first) expands();
  return dx;
}

bool gated_by_kernel(const LoraCall& in, const LoraCall& out, const at::Tensor& x) {
  const LoraPass& pass = *in.pass;
  if (pass.backend != LoraBackend::kernels || pass.groups.empty() || pass.dropout) return false;
  if (!everybodys(in, x.size(0)) || !everybodys(out, x.size(0))) return false;
  return x.is_cpu() || kernels::has_grouped_swiglu(dtype_of(x), in.targets[0].weight.size(0));
}

at::Tensor gated_forward(const LoraCall& in, const LoraCall& out, const at::Tensor& x, std::vector<at::Tensor>& kept) {
  const Some both = in_threes(in, x.size(0))[0];
  const at::Tensor s = shrink(both, false, {x, x});
  BaseProducts base(x);
  const at::Tensor gate = base(in.targets[0]), up = base(in.targets[1]);
  at::Tensor y = at::empty_like(gate);
  auto job = swiglu_job(both, s, gate, up);
  job.y = y.mutable_data_ptr();
  kernels::grouped_swiglu(job, buffer_of(y).place);
  kept = {s, gate, up, y};
  if (!computed_again()) return kernels_forward(out, y, kept)[0];
  // A layer ends with this node: backward reads of down's product no more than what its adapters shrink y to.
  kept.push_back(shrink(in_threes(out, y.size(0))[0], false, {y}));
  return at::zeros({x.size(0), out.targets[0].weight.size(0)}, x.options());
}

at::Tensor gated_backward(const LoraCall& in, const LoraCall& out, const at::Tensor& x,
                          const std::vector<at::Tensor>& kept, const at::Tensor& dy, bool wanted) {
  const at::Tensor &s = kept[0], &gate = kept[1], &up = kept[2], &inner = kept[3];
  const Some both = in_threes(in, x.size(0))[0], down = in_threes(out, x.size(0))[0];
  const at::Tensor ds = shrink(down, true, {dy});
  at::Tensor back;
  add_base_gradient(out.targets[0], dy, back);
  outer(down, {inner}, ds, {dy}, kept[4]);
  at::Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
  auto job = swiglu_job(both, s, gate, up);
  job.of_down = path_of(down, 0, ds);
  job.dy = back.const_data_ptr();
  job.dgate = dgate.mutable_data_ptr();
  job.dup = dup.mutable_data_ptr();
  kernels::grouped_swiglu(job, buffer_of(back).place);
  return kernels_backward(in, x, {s}, {dgate, dup}, wanted);
}

void make_rows(LoraPass& pass, const at::Tensor& like) {
  std::vector<kernels::GroupedRows> rows;
  for (const auto& group : pass.groups)
    rows.push_back({std::int32_t(group.rows.first), std::int32_t(group.rows.last), group.dropout});
  pass.rows = bytes_on(rows, like);
}

namespace {

// Blocks of large ranks begin first and, as those that share a multiprocessor come far apart in the table, beside light
// ones: the last to end was a multiprocessor with two heavy ones.
void put_heavy_first(std::vector<kernels::GroupedBlock>& blocks, const LoraPass& pass) {
  std::vector<std::int64_t> weight;
  for (const auto& group : pass.groups) {
    weight.push_back(0);
    for (const LoraAdapter& w : *group.adapters) weight.back() += w.a.defined() ? w.a.size(0) : 0;
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const auto& a, const auto& b) {
    return weight[std::size_t(a.group)] > weight[std::size_t(b.group)];
  });
}

}  // namespace

void make_tables(LoraPass& pass, std::size_t targets, const at::Tensor& like) {
  make_rows(pass, like);
  std::vector<kernels::GroupedBlock> blocks;
  bool whole = true;
  for (std::size_t g = 0; g < pass.groups.size(); ++g) {
    const SlotRows& rows = pass.groups[g].rows;
    whole = whole && rows.first == pass.rows_from_0;
    pass.rows_from_0 = rows.last;
    for (std::int64_t b = 0; b * kernels::grouped_rows < rows.last - rows.first; ++b)
      blocks.push_back({std::int32_t(g), std::int32_t(b)});
    pass.longest = std::max(pass.longest, rows.last - rows.first);
  }
  if (!whole) pass.rows_from_0 = 0;
  std::vector<kernels::GroupedAdapter> adapters;
  pass.most_rank.assign(targets, 0);
  pass.by_all.assign(targets, true);
  for (std::size_t t = 0; t < targets; ++t)
    for (const auto& group : pass.groups) {
      const LoraAdapter& w = (*group.adapters)[t];
      adapters.emplace_back();
      if (!w.a.defined()) {
        pass.by_all[t] = false;
        continue;
      }
      adapters.back() = {w.a.const_data_ptr(),    w.b.const_data_ptr(),      w.da.mutable_data_ptr(),
                         w.db.mutable_data_ptr(), std::int32_t(w.a.size(0)), float(w.scale)};
      pass.most_rank[t] = std::max(pass.most_rank[t], w.a.size(0));
    }
  put_heavy_first(blocks, pass);
  pass.block_count = std::int64_t(blocks.size());
  pass.adapters = bytes_on(adapters, like);
  pass.blocks = bytes_on(blocks, like);
}

}  // namespace trireme::nn

#include "framework/nn/embedding.h"

#include "comm/error.h"
#include "data/rng.h"

#include <algorithm>
#include <cmath>

#include <ATen/Parallel.h>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-10;  // of both Adagrads

kernels::Bags bags_of(const at::Tensor& ids, const Table& t) {
  return {ids.const_data_ptr<std::int32_t>(),
          ids.size(0) * ids.size(1),
          ids.size(2),
          ids.size(1),
          ids.stride(0),
          t.pooling == "mean"};
}

template <class T>
kernels::SampleRows<T> rows_of(const at::Tensor& t) {
  return {const_cast<T*>(t.const_data_ptr<std::remove_const_t<T>>()), t.size(1), t.stride(0)};
}

template <class T>
void draw(at::Tensor& weight, std::uint64_t seed, const std::string& name) {
  const std::int64_t rows = weight.size(0), d = weight.size(1);
  const double bound = 1 / std::sqrt(double(rows));
  T* w = weight.data_ptr<T>();
  at::parallel_for(0, rows, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      Rng rng(seed, "init/" + name, std::uint64_t(r));
      for (std::int64_t k = 0; k < d; ++k) w[r * d + k] = T(bound * (2 * rng.uniform() - 1));
    }
  });
}

}  // namespace

std::int64_t EmbeddingTable::state_width(kernels::SparseRule rule, std::int64_t dim) {
  return rule == kernels::SparseRule::sgd ? 0 : rule == kernels::SparseRule::adagrad ? dim : 1;
}

EmbeddingRows::EmbeddingRows(std::int64_t rows, std::int64_t dim, kernels::SparseRule rule, at::TensorOptions options)
    : weight(at::empty({rows, dim}, options)) {
  if (rule == kernels::SparseRule::adagrad) state = at::zeros({rows, dim}, options);
  if (rule == kernels::SparseRule::rowwise_adagrad) state = at::zeros({rows}, options);
}

EmbeddingRows EmbeddingRows::part(std::int64_t first, std::int64_t rows) const {
  EmbeddingRows p;
  p.weight = weight.narrow(0, first, rows);
  if (state.defined()) p.state = state.narrow(0, first, rows);
  return p;
}

void EmbeddingRows::lookup(const at::Tensor& ids, at::Tensor out) const {
  at::index_select_out(out, weight.detach(), 0, ids);
}

void EmbeddingRows::update(const at::Tensor& ids, const at::Tensor& gradient, kernels::SparseRule rule, double lr,
                           const at::Tensor& skip) {
  at::Tensor w = weight.detach(), g = gradient;
  if (skip.defined()) g = at::where(skip > 0, at::zeros({}, g.options()), g);
  if (rule == kernels::SparseRule::sgd) {
    w.index_add_(0, ids, g, -lr);
    return;
  }
  const auto [distinct, number, counts] = at::_unique2(ids, /*sorted=*/true, /*return_inverse=*/true);
  const at::Tensor sum = at::zeros({distinct.size(0), w.size(1)}, g.options()).index_add_(0, number, g);
  const at::Tensor square = rule == kernels::SparseRule::adagrad ? sum * sum : (sum * sum).mean(1);
  at::Tensor m = state.index_select(0, distinct) + square;
  state.index_copy_(0, distinct, m);
  if (m.dim() == 1) m = m.unsqueeze(1);
  w.index_add_(0, distinct, sum / (m.sqrt() + eps), -lr);
}

EmbeddingTable::EmbeddingTable(const Table& table, const std::string& name, kernels::SparseRule rule,
                               std::uint64_t seed, EmbeddingRows memory)
    : table_(table), rule_(rule), rows_(std::move(memory)) {
  at::Tensor host = at::empty(rows_.weight.sizes(), rows_.weight.scalar_type());
  host.scalar_type() == at::kDouble ? draw<double>(host, seed, name) : draw<float>(host, seed, name);
  rows_.weight.copy_(host);
  rows_.weight.requires_grad_();
}

void EmbeddingTable::lookup(const at::Tensor& ids, const at::Tensor& out) const {
  const at::Tensor w = rows_.weight.detach();
  const std::int64_t d = w.size(1);
  if (w.is_cpu()) {
    if (w.scalar_type() == at::kDouble)
      kernels::embedding_lookup<double>(w.const_data_ptr<double>(), d, bags_of(ids, table_), rows_of<double>(out));
    else
      kernels::embedding_lookup<float>(w.const_data_ptr<float>(), d, bags_of(ids, table_), rows_of<float>(out));
    return;
  }
  const at::Tensor flat = ids.reshape({-1});
  at::Tensor rows = w.index_select(0, flat.clamp_min(0)).view({ids.size(0), ids.size(1), ids.size(2), d});
  rows = (rows * shares(ids).unsqueeze(-1)).sum(2);
  out.copy_(rows);
}

// [P, b, w]: what each id counts in its bag; 0 where there is none.
at::Tensor EmbeddingTable::shares(const at::Tensor& ids) const {
  const at::Tensor there = (ids >= 0).to(rows_.weight.scalar_type());
  return table_.pooling == "mean" ? there / there.sum(2, /*keepdim=*/true).clamp_min(1) : there;
}

void EmbeddingTable::update(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip) {
  at::Tensor w = rows_.weight.detach(), &m = rows_.state;
  const std::int64_t d = w.size(1);
  if (!w.is_cpu()) {
    const at::Tensor g = (gradient.unsqueeze(2) * shares(ids).unsqueeze(-1)).reshape({-1, d});
    return rows_.update(ids.reshape({-1}).clamp_min(0).to(at::kLong), g, rule_, lr, skip);
  }
  if (skip.defined() && skip.item<float>() != 0) return;
  const kernels::Bags bags = bags_of(ids, table_);
  distinct_.find(bags);
  if (w.scalar_type() == at::kDouble)
    kernels::embedding_update<double>(w.data_ptr<double>(), m.defined() ? m.data_ptr<double>() : nullptr, d, bags,
                                      distinct_, rows_of<const double>(gradient), rule_, lr, eps);
  else
    kernels::embedding_update<float>(w.data_ptr<float>(), m.defined() ? m.data_ptr<float>() : nullptr, d, bags,
                                     distinct_, rows_of<const float>(gradient), rule_, lr, eps);
}

}  // namespace trireme::nn

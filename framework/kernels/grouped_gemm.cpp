#include "comm/reduce.h"
#include "framework/kernels/grouped_swiglu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>

namespace trireme::kernels {
namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Map = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;

struct Brain {
  std::uint16_t bits;
};

// A part of a matrix of T, as what is computed with: of bf16 a copy in f32, any other as it lies there.
template <class T>
struct Part {
  using Value = T;
  Map<T> map;
  Part(const void* p, std::int64_t first, std::int64_t rows, std::int64_t columns, std::int64_t stride)
      : map(const_cast<T*>(static_cast<const T*>(p)) + first * stride, rows, columns, Eigen::OuterStride<>(stride)) {}
  void store() {}
};

template <>
struct Part<Brain> {
  using Value = float;
  std::uint16_t* at;
  std::int64_t stride;
  Matrix<float> map;
  Part(const void* p, std::int64_t first, std::int64_t rows, std::int64_t columns, std::int64_t row)
      : at(const_cast<std::uint16_t*>(static_cast<const std::uint16_t*>(p)) + first * row),
        stride(row),
        map(rows, columns) {
    for (std::int64_t i = 0; i < rows; ++i)
      widen(DType::bf16, at + i * stride, map.data() + i * columns, static_cast<std::size_t>(columns));
  }
  void store() {
    for (std::int64_t i = 0; i < map.rows(); ++i)
      narrow(DType::bf16, map.data() + i * map.cols(), at + i * stride, static_cast<std::size_t>(map.cols()));
  }
};

// f of every group that adapts the target: groups are apart, so threads may take them.
template <class F>
void each_group(const GroupedTable& t, const GroupedAdapter* adapters, F f) {
#pragma omp parallel for schedule(dynamic) if (t.groups > 1)
  for (std::int64_t g = 0; g < t.groups; ++g)
    if (adapters[g].rank > 0 && t.rows[g].last > t.rows[g].first)
      f(t.rows[g], adapters[g], t.rows[g].first, t.rows[g].last - t.rows[g].first);
}

template <class T>
void shrink(const GroupedShrink& job, const ShrinkTarget& to) {
  using Value = typename Part<T>::Value;
  const auto width = to.width;
  each_group(job.table, to.adapters,
             [&](const GroupedRows&, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
               const Part<T> x(to.x, first, rows, width, width);
               Part<T> s(to.s, first, rows, w.rank, job.table.rank_stride);
               if (job.backward)
                 s.map.noalias() = (x.map * Part<T>(w.b, 0, width, w.rank, w.rank).map) * static_cast<Value>(w.scale);
               else
                 s.map.noalias() = x.map * Part<T>(w.a, 0, w.rank, width, width).map.transpose();
               s.store();
             });
}

// Numbers of a row's quad are drawn once.
template <class Value>
void mask(const DropoutKey& key, std::uint32_t module, std::int64_t row, std::int64_t width, Value* values) {
  for (std::int64_t c = 0; c < width; c += 4) {
    const DropoutWords w =
        dropout_words(key, module, static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(c / 4));
    for (std::int64_t k = 0; k < std::min<std::int64_t>(4, width - c); ++k)
      values[c + k] *= static_cast<Value>(dropout_factor(key, w.word[k]));
  }
}

template <class T>
void expand(const GroupedExpand& job, const ExpandTarget& from, const ExpandTarget& to, bool add) {
  using Value = typename Part<T>::Value;
  const auto width = to.width;
  each_group(job.table, from.adapters,
             [&](const GroupedRows& g, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
               const Part<T> s(from.s, first, rows, w.rank, job.table.rank_stride);
               Part<T> y(to.y, first, rows, width, width);
               if (!add) y.map.setZero();
               if (!add && to.bias) y.map.rowwise() += Part<T>(to.bias, 0, 1, width, width).map.row(0);
               if (!job.backward) {
                 const Part<T> b(w.b, 0, width, w.rank, w.rank);
                 y.map.noalias() += (s.map * static_cast<Value>(w.scale)) * b.map.transpose();
               } else {
                 Matrix<Value> change = s.map * Part<T>(w.a, 0, w.rank, width, width).map;
                 for (std::int64_t i = 0; i < rows && g.dropout.threshold != 0; ++i)
                   mask(g.dropout, from.module, i, width, change.data() + i * width);
                 y.map += change;
               }
               y.store();
             });
}

template <class T>
void outer(const GroupedOuter& job, const OuterTarget& of) {
  using Value = typename Part<T>::Value;
  each_group(job.table, of.adapters,
             [&](const GroupedRows&, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
               const auto stride = job.table.rank_stride;
               const Part<T> x(of.x, first, rows, of.in, of.in), ds(of.ds, first, rows, w.rank, stride);
               const Part<T> dy(of.dy, first, rows, of.out, of.out), s(of.s, first, rows, w.rank, stride);
               Part<Value> da(w.da, 0, w.rank, of.in, of.in), db(w.db, 0, of.out, w.rank, w.rank);
               if (!job.add) da.map.setZero(), db.map.setZero();
               da.map.noalias() += ds.map.transpose() * x.map;
               // The paper prints dB without the scale.
               db.map.noalias() += dy.map.transpose() * (s.map * static_cast<Value>(w.scale));
             });
}

template <class T>
void dropout(const GroupedDropout& job) {
  if (job.to != job.from) std::memcpy(job.to, job.from, static_cast<std::size_t>(job.tokens * job.width) * sizeof(T));
#pragma omp parallel for schedule(dynamic) if (job.groups > 1)
  for (std::int64_t g = 0; g < job.groups; ++g) {
    const GroupedRows& rows = job.rows[g];
    if (rows.dropout.threshold == 0) continue;
    Part<T> part(job.to, rows.first, rows.last - rows.first, job.width, job.width);
    for (std::int64_t i = 0; i < part.map.rows(); ++i)
      mask(rows.dropout, job.module, i, job.width, part.map.data() + i * job.width);
    part.store();
  }
}

// What a path adds to the base's rows: scale s S B^T, or dS A (whose dS carries the scale).
template <class T>
Matrix<typename Part<T>::Value> with_path(const GroupedSwiglu& job, const SwigluPath& path, const void* base,
                                          std::int64_t group, bool of_down) {
  using Value = typename Part<T>::Value;
  const GroupedRows& g = job.table.rows[group];
  const GroupedAdapter& w = path.adapters[group];
  const std::int64_t rows = g.last - g.first;
  Matrix<Value> y = Part<T>(base, g.first, rows, job.width, job.width).map;
  const Part<T> s(path.s, g.first, rows, w.rank, path.rank_stride);
  if (of_down)
    y.noalias() += s.map * Part<T>(w.a, 0, w.rank, job.width, job.width).map;
  else
    y.noalias() += (s.map * static_cast<Value>(w.scale)) * Part<T>(w.b, 0, job.width, w.rank, w.rank).map.transpose();
  return y;
}

template <class T>
void swiglu_group(const GroupedSwiglu& job, std::int64_t group) {
  using Value = typename Part<T>::Value;
  const GroupedRows& rows = job.table.rows[group];
  const std::int64_t count = rows.last - rows.first;
  if (count == 0) return;
  const auto g = with_path<T>(job, job.of_gate, job.gate, group, false);
  const auto u = with_path<T>(job, job.of_up, job.up, group, false);
  const Matrix<Value> s = g.unaryExpr([](Value v) { return 1 / (1 + std::exp(-v)); });
  if (!job.dy) {
    Part<T> y(job.y, rows.first, count, job.width, job.width);
    y.map = g.cwiseProduct(s).cwiseProduct(u);
    return y.store();
  }
  const auto dy = with_path<T>(job, job.of_down, job.dy, group, true);
  Part<T> dgate(job.dgate, rows.first, count, job.width, job.width),
      dup(job.dup, rows.first, count, job.width, job.width);
  dgate.map = (dy.array() * u.array() * s.array() * (1 + g.array() * (1 - s.array()))).matrix();
  dup.map = dy.cwiseProduct(g).cwiseProduct(s);
  dgate.store();
  dup.store();
}

template <class T>
struct Type {
  using type = T;
};

template <class Job, class F>
void by_type(const Job& job, F run) {
  if (job.type == DType::f32) return run(Type<float>());
  if (job.type == DType::f64) return run(Type<double>());
  if (job.type == DType::bf16) return run(Type<Brain>());
  throw Error(ExitCode::bug, "grouped kernels", "they take f32, f64 and bf16");
}

void shrink_on_host(const GroupedShrink& job) {
  for (int t = 0; t < job.targets; ++t)
    by_type(job, [&](auto type) { shrink<typename decltype(type)::type>(job, job.target[t]); });
}
void expand_on_host(const GroupedExpand& job) {
  for (int t = 0; t < job.targets; ++t)
    by_type(job, [&](auto type) {
      expand<typename decltype(type)::type>(job, job.target[t], job.target[job.backward ? 0 : t],
                                            job.add || (job.backward && t > 0));
    });
}
void outer_on_host(const GroupedOuter& job) {
  for (int t = 0; t < job.targets; ++t)
    by_type(job, [&](auto type) { outer<typename decltype(type)::type>(job, job.target[t]); });
}
void dropout_on_host(const GroupedDropout& job) {
  by_type(job, [&](auto t) { dropout<typename decltype(t)::type>(job); });
}

void swiglu_on_host(const GroupedSwiglu& job) {
#pragma omp parallel for schedule(dynamic) if (job.table.groups > 1)
  for (std::int64_t g = 0; g < job.table.groups; ++g)
    by_type(job, [&](auto t) { swiglu_group<typename decltype(t)::type>(job, g); });
}

}  // namespace

constinit Kernel<GroupedSwiglu> grouped_swiglu("grouped_swiglu", swiglu_on_host);
constinit Kernel<GroupedShrink> grouped_shrink("grouped_shrink", shrink_on_host);
constinit Kernel<GroupedExpand> grouped_expand("grouped_expand", expand_on_host);
constinit Kernel<GroupedOuter> grouped_outer("grouped_outer", outer_on_host);
constinit Kernel<GroupedDropout> grouped_dropout("grouped_dropout", dropout_on_host);

}  // namespace trireme::kernels

#include "framework/kernels/grouped_gemm.h"

#include "comm/reduce.h"

#include <algorithm>
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
void each_group(const GroupedTable& t, F f) {
#pragma omp parallel for schedule(dynamic) if (t.groups > 1)
  for (std::int64_t g = 0; g < t.groups; ++g)
    if (t.adapters[g].rank > 0 && t.rows[g].last > t.rows[g].first)
      f(t.rows[g], t.adapters[g], t.rows[g].first, t.rows[g].last - t.rows[g].first);
}

template <class T>
void shrink(const GroupedShrink& job) {
  using Value = typename Part<T>::Value;
  each_group(job.table, [&](const GroupedRows&, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
    const Part<T> x(job.x, first, rows, job.width, job.width);
    Part<T> s(job.s, first, rows, w.rank, job.table.rank_stride);
    if (job.backward)
      s.map.noalias() = (x.map * Part<T>(w.b, 0, job.width, w.rank, w.rank).map) * static_cast<Value>(w.scale);
    else
      s.map.noalias() = x.map * Part<T>(w.a, 0, w.rank, job.width, job.width).map.transpose();
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
void expand(const GroupedExpand& job) {
  using Value = typename Part<T>::Value;
  each_group(job.table, [&](const GroupedRows& g, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
    const Part<T> s(job.s, first, rows, w.rank, job.table.rank_stride);
    Part<T> y(job.y, first, rows, job.width, job.width);
    if (!job.backward) {
      y.map.noalias() +=
          (s.map * static_cast<Value>(w.scale)) * Part<T>(w.b, 0, job.width, w.rank, w.rank).map.transpose();
    } else if (g.dropout.threshold == 0) {
      y.map.noalias() += s.map * Part<T>(w.a, 0, w.rank, job.width, job.width).map;
    } else {
      Matrix<Value> change = s.map * Part<T>(w.a, 0, w.rank, job.width, job.width).map;
      for (std::int64_t i = 0; i < rows; ++i) mask(g.dropout, job.module, i, job.width, change.data() + i * job.width);
      y.map += change;
    }
    y.store();
  });
}

template <class T>
void outer(const GroupedOuter& job) {
  using Value = typename Part<T>::Value;
  each_group(job.table, [&](const GroupedRows&, const GroupedAdapter& w, std::int64_t first, std::int64_t rows) {
    const auto stride = job.table.rank_stride;
    const Part<T> x(job.x, first, rows, job.in, job.in), ds(job.ds, first, rows, w.rank, stride);
    const Part<T> dy(job.dy, first, rows, job.out, job.out), s(job.s, first, rows, w.rank, stride);
    Part<Value>(w.da, 0, w.rank, job.in, job.in).map.noalias() += ds.map.transpose() * x.map;
    // The paper prints dB without the scale.
    Part<Value>(w.db, 0, job.out, w.rank, w.rank).map.noalias() +=
        dy.map.transpose() * (s.map * static_cast<Value>(w.scale));
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
  by_type(job, [&](auto t) { shrink<typename decltype(t)::type>(job); });
}
void expand_on_host(const GroupedExpand& job) {
  by_type(job, [&](auto t) { expand<typename decltype(t)::type>(job); });
}
void outer_on_host(const GroupedOuter& job) {
  by_type(job, [&](auto t) { outer<typename decltype(t)::type>(job); });
}
void dropout_on_host(const GroupedDropout& job) {
  by_type(job, [&](auto t) { dropout<typename decltype(t)::type>(job); });
}

}  // namespace

constinit Kernel<GroupedShrink> grouped_shrink("grouped_shrink", shrink_on_host);
constinit Kernel<GroupedExpand> grouped_expand("grouped_expand", expand_on_host);
constinit Kernel<GroupedOuter> grouped_outer("grouped_outer", outer_on_host);
constinit Kernel<GroupedDropout> grouped_dropout("grouped_dropout", dropout_on_host);

}  // namespace trireme::kernels

#define EIGEN_DONT_PARALLELIZE
#include "framework/kernels/attention.h"

#include <cmath>

#include <Eigen/Core>

namespace trireme::kernels {
namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using View = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using ConstView = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;

template <class T>
ConstView<T> head(Rows<const T> rows, std::int64_t first, std::int64_t n, std::int64_t h, std::int64_t d) {
  return {rows.data + first * rows.stride + h * d, n, d, Eigen::OuterStride<>(rows.stride)};
}
template <class T>
View<T> head(Rows<T> rows, std::int64_t first, std::int64_t n, std::int64_t h, std::int64_t d) {
  return {rows.data + first * rows.stride + h * d, n, d, Eigen::OuterStride<>(rows.stride)};
}

// p = softmax by rows of q k^T / sqrt(d).
template <class T>
void probabilities(const AttentionShape& s, ConstView<T> q, ConstView<T> k, Matrix<T>& p) {
  const std::int64_t n = q.rows(), m = k.rows();
  p.resize(n, m);
  p.noalias() = q * k.transpose();
  const T scale = T(1) / std::sqrt(T(s.head_dim));
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t seen = s.causal ? i + m - n + 1 : m;
    auto row = p.row(i).head(seen).array();
    row = ((row - row.maxCoeff()) * scale).exp();
    row *= T(1) / row.sum();
    p.row(i).tail(m - seen).setZero();
  }
}

template <class F>
void for_each_head(const AttentionShape& s, const F& f) {
  const std::int64_t tasks = (std::int64_t(s.q_offsets.size()) - 1) * s.heads;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < tasks; ++t) f(t / s.heads, t % s.heads);
}

}  // namespace

template <class T>
void attention(const AttentionShape& s, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out) {
  for_each_head(s, [&](std::int64_t seq, std::int64_t h) {
    const std::int64_t q0 = s.q_offsets[seq], n = s.q_offsets[seq + 1] - q0;
    const std::int64_t k0 = s.k_offsets[seq], m = s.k_offsets[seq + 1] - k0, d = s.head_dim;
    thread_local Matrix<T> p;
    probabilities<T>(s, head(q, q0, n, h, d), head(k, k0, m, h, d), p);
    head(out, q0, n, h, d).noalias() = p * head(v, k0, m, h, d);
  });
}

template <class T>
void attention_backward(const AttentionShape& s, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> dout,
                        Rows<T> dq, Rows<T> dk, Rows<T> dv) {
  const T scale = T(1) / std::sqrt(T(s.head_dim));
  for_each_head(s, [&](std::int64_t seq, std::int64_t h) {
    const std::int64_t q0 = s.q_offsets[seq], n = s.q_offsets[seq + 1] - q0;
    const std::int64_t k0 = s.k_offsets[seq], m = s.k_offsets[seq + 1] - k0, d = s.head_dim;
    thread_local Matrix<T> p, dp;
    const auto qh = head(q, q0, n, h, d), kh = head(k, k0, m, h, d), vh = head(v, k0, m, h, d);
    const auto dh = head(dout, q0, n, h, d);
    probabilities<T>(s, qh, kh, p);
    head(dv, k0, m, h, d).noalias() = p.transpose() * dh;
    dp.resize(n, m);
    dp.noalias() = dh * vh.transpose();
    for (std::int64_t i = 0; i < n; ++i) {
      const T mean = (p.row(i).array() * dp.row(i).array()).sum();
      dp.row(i).array() = p.row(i).array() * (dp.row(i).array() - mean) * scale;
    }
    head(dq, q0, n, h, d).noalias() = dp * kh;
    head(dk, k0, m, h, d).noalias() = dp.transpose() * qh;
  });
}

#define TRIREME_ATTENTION(T)                                                                                          \
  template void attention(const AttentionShape&, Rows<const T>, Rows<const T>, Rows<const T>, Rows<T>);               \
  template void attention_backward(const AttentionShape&, Rows<const T>, Rows<const T>, Rows<const T>, Rows<const T>, \
                                   Rows<T>, Rows<T>, Rows<T>);
TRIREME_ATTENTION(float)
TRIREME_ATTENTION(double)

}  // namespace trireme::kernels

#include "framework/kernels/interaction.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace trireme::kernels {
namespace {

// Vectors of a sample are few and short: they fit into the first cache. Products are taken for four vectors at a time
// in whole registers (of the widest kind; narrower machines split them).
template <class T>
struct Lanes {
  typedef T V __attribute__((vector_size(64)));
  static constexpr std::int64_t n = 64 / sizeof(T);
  static V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, const V& v) { std::memcpy(p, &v, sizeof v); }
  static std::int64_t padded(std::int64_t k) { return (k + n - 1) / n * n; }
};

constexpr std::int64_t at_once = 4;

// Of one thread: vectors by row, and the matrix that they are multiplied with, rows padded to whole registers.
template <class T>
struct Scratch {
  std::int64_t f, rows, d;  // vectors; rounded up to four; their width, padded
  std::int64_t wide;        // a row of f, padded
  std::vector<T> z, zt, s;
  Scratch(std::int64_t vectors, std::int64_t width)
      : f(vectors),
        rows((f + at_once - 1) / at_once * at_once),
        d(Lanes<T>::padded(width)),
        wide(Lanes<T>::padded(f)),
        z(std::size_t(rows * d)),
        zt(std::size_t(d * std::max(wide, at_once))),
        s(std::size_t(rows * wide)) {}
};

template <class T>
const T* vector_of(const Vectors<const T>& in, std::int64_t i, std::int64_t sample) {
  return i == 0 ? in.x + sample * in.d : in.rows + (in.place[i - 1] * in.n + sample) * in.d;
}

// out[r][0..n) = sum over k < depth of left[r][k] * right[k][0..n) for four rows r; n a multiple of the lanes.
template <class T>
void four_rows(const T* left, std::int64_t left_stride, std::int64_t depth, const T* right, std::int64_t right_stride,
               std::int64_t n, T* out, std::int64_t out_stride) {
  using L = Lanes<T>;
  for (std::int64_t c = 0; c < n; c += L::n) {
    typename L::V sum[at_once] = {};
    for (std::int64_t k = 0; k < depth; ++k) {
      const typename L::V x = L::load(right + k * right_stride + c);
      for (std::int64_t r = 0; r < at_once; ++r) sum[r] += left[r * left_stride + k] * x;
    }
    for (std::int64_t r = 0; r < at_once; ++r) L::store(out + r * out_stride + c, sum[r]);
  }
}

template <class T>
void products(const Vectors<const T>& in, std::int64_t sample, Scratch<T>& c, T* out) {
  const std::int64_t d = in.d;
  for (std::int64_t i = 0; i < c.f; ++i) {
    const T* v = vector_of(in, i, sample);
    std::memcpy(c.z.data() + i * c.d, v, std::size_t(d) * sizeof(T));
    for (std::int64_t k = 0; k < d; ++k) c.zt[std::size_t(k * c.wide + i)] = v[k];
  }
  std::memcpy(out, in.x + sample * d, std::size_t(d) * sizeof(T));
  out += d;
  for (std::int64_t i = 0; i < c.f; i += at_once) {
    const std::int64_t n = Lanes<T>::padded(std::min(c.f, i + at_once - 1));  // what lies left of the diagonal
    four_rows(c.z.data() + i * c.d, c.d, d, c.zt.data(), c.wide, n, c.s.data(), c.wide);
    for (std::int64_t r = 0; r < at_once && i + r < c.f; ++r) {
      std::memcpy(out, c.s.data() + r * c.wide, std::size_t(i + r) * sizeof(T));
      out += i + r;
    }
  }
}

template <class T>
void gradients(const Vectors<const T>& in, std::int64_t sample, Scratch<T>& c, const T* grad, const Vectors<T>& to) {
  const std::int64_t d = in.d, f = c.f;
  // The gradient of the product matrix, made symmetric.
  const T* g = grad + d;
  for (std::int64_t i = 0; i < f; ++i) {
    std::memcpy(c.s.data() + i * c.wide, g, std::size_t(i) * sizeof(T));
    c.s[std::size_t(i * c.wide + i)] = T(0);
    for (std::int64_t j = 0; j < i; ++j) c.s[std::size_t(j * c.wide + i)] = g[j];
    g += i;
  }
  for (std::int64_t i = 0; i < f; ++i)
    std::memcpy(c.z.data() + i * c.d, vector_of(in, i, sample), std::size_t(d) * sizeof(T));
  T* sums = c.zt.data();  // four rows of it
  for (std::int64_t i = 0; i < f; i += at_once) {
    four_rows(c.s.data() + i * c.wide, c.wide, f, c.z.data(), c.d, c.d, sums, c.d);
    for (std::int64_t r = 0; r < at_once && i + r < f; ++r) {
      const std::int64_t k = i + r;
      T* out = k == 0 ? to.x + sample * d : to.rows + (to.place[k - 1] * in.n + sample) * d;
      std::memcpy(out, sums + r * c.d, std::size_t(d) * sizeof(T));
    }
  }
  for (std::int64_t k = 0; k < d; ++k) to.x[sample * d + k] += grad[k];
}

template <class T>
void on_host(const InteractJob<T>& job) {
  const std::int64_t width = width_of(job.in);
#pragma omp parallel if (job.in.n > 64)
  {
    Scratch<T> c(job.in.tables + 1, job.in.d);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < job.in.n; ++n) products(job.in, n, c, job.out + n * width);
  }
}

template <class T>
void backward_on_host(const InteractBackwardJob<T>& job) {
  const std::int64_t width = width_of(job.in);
#pragma omp parallel if (job.in.n > 64)
  {
    Scratch<T> c(job.in.tables + 1, job.in.d);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < job.in.n; ++n) gradients(job.in, n, c, job.grad + n * width, job.to);
  }
}

}  // namespace

constinit Kernel<InteractJob<float>> interact_f32("interaction", on_host<float>);
constinit Kernel<InteractJob<double>> interact_f64("interaction", on_host<double>);
constinit Kernel<InteractBackwardJob<float>> interact_backward_f32("interaction", backward_on_host<float>);
constinit Kernel<InteractBackwardJob<double>> interact_backward_f64("interaction", backward_on_host<double>);

}  // namespace trireme::kernels

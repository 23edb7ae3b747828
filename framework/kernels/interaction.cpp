#include "framework/kernels/interaction.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace trireme::kernels {
namespace {

// Vectors of a sample are few and short: they fit into the first cache, next to their transpose, whose rows are padded
// to whole vector registers.
constexpr std::int64_t lanes = 16;

template <class T>
struct Scratch {
  std::int64_t f, padded;
  std::vector<T> z, zt, s;
  Scratch(std::int64_t vectors, std::int64_t d)
      : f(vectors),
        padded((vectors + lanes - 1) / lanes * lanes),
        z(std::size_t(f * d)),
        zt(std::size_t(d * padded)),
        s(std::size_t(f * padded)) {}
};

template <class T>
const T* vector_of(const Vectors<const T>& in, std::int64_t i, std::int64_t sample) {
  return i == 0 ? in.x + sample * in.d : in.rows + (in.place[std::size_t(i - 1)] * in.n + sample) * in.d;
}

template <class T>
void products(const Vectors<const T>& in, std::int64_t sample, Scratch<T>& c, T* out) {
  const std::int64_t d = in.d, p = c.padded;
  for (std::int64_t i = 0; i < c.f; ++i) {
    const T* v = vector_of(in, i, sample);
    for (std::int64_t k = 0; k < d; ++k) c.zt[std::size_t(k * p + i)] = v[k];
  }
  std::memcpy(out, in.x + sample * d, std::size_t(d) * sizeof(T));
  out += d;
  for (std::int64_t i = 1; i < c.f; ++i) {
    const T* v = vector_of(in, i, sample);
    const std::int64_t n = (i + lanes - 1) / lanes * lanes;
    T* row = c.s.data();
    std::fill_n(row, n, T(0));
    for (std::int64_t k = 0; k < d; ++k) {
      const T* column = c.zt.data() + k * p;
      const T x = v[k];
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) row[j] += x * column[j];
    }
    std::memcpy(out, row, std::size_t(i) * sizeof(T));
    out += i;
  }
}

template <class T>
void gradients(const Vectors<const T>& in, std::int64_t sample, Scratch<T>& c, const T* grad, const Vectors<T>& to) {
  const std::int64_t d = in.d, f = c.f;
  // The gradient of the product matrix, made symmetric.
  const T* g = grad + d;
  for (std::int64_t i = 0; i < f; ++i) {
    c.s[std::size_t(i * f + i)] = T(0);
    for (std::int64_t j = 0; j < i; ++j) c.s[std::size_t(i * f + j)] = c.s[std::size_t(j * f + i)] = *g++;
  }
  for (std::int64_t i = 0; i < f; ++i)
    std::memcpy(c.z.data() + i * d, vector_of(in, i, sample), std::size_t(d) * sizeof(T));
  for (std::int64_t i = 0; i < f; ++i) {
    T* out = i == 0 ? to.x + sample * d : to.rows + (to.place[std::size_t(i - 1)] * in.n + sample) * d;
    if (i == 0)
      std::memcpy(out, grad, std::size_t(d) * sizeof(T));
    else
      std::fill_n(out, d, T(0));
    for (std::int64_t j = 0; j < f; ++j) {
      const T x = c.s[std::size_t(i * f + j)];
      const T* v = c.z.data() + j * d;
#pragma omp simd
      for (std::int64_t k = 0; k < d; ++k) out[k] += x * v[k];
    }
  }
}

}  // namespace

template <class T>
void interact(const Vectors<const T>& in, T* out) {
#pragma omp parallel if (in.n > 64)
  {
    Scratch<T> c(std::int64_t(in.place.size()) + 1, in.d);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < in.n; ++n) products(in, n, c, out + n * in.width());
  }
}

template <class T>
void interact_backward(const Vectors<const T>& in, const T* grad, const Vectors<T>& to) {
#pragma omp parallel if (in.n > 64)
  {
    Scratch<T> c(std::int64_t(in.place.size()) + 1, in.d);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < in.n; ++n) gradients(in, n, c, grad + n * in.width(), to);
  }
}

#define TRIREME_INSTANTIATE(T)                         \
  template void interact(const Vectors<const T>&, T*); \
  template void interact_backward(const Vectors<const T>&, const T*, const Vectors<T>&);
TRIREME_INSTANTIATE(float)
TRIREME_INSTANTIATE(double)

}  // namespace trireme::kernels

// DLRM's dot interaction on the host, f32 and f64 (Naumov et al., arXiv 1906.00091): of the vectors T = [x, e_1 .. e_F]
// of a sample, x followed by the strictly lower triangle of T T^T, row by row.
#pragma once
#include <cstdint>
#include <span>

namespace trireme::kernels {

// The vectors of n samples: x [n, d]; e_k [n, d] at rows + place[k] * n * d, k counting from 0.
template <class T>
struct Vectors {
  T *x, *rows;
  std::span<const std::int64_t> place;
  std::int64_t n, d;
  std::int64_t width() const {  // of the output
    const auto f = std::int64_t(place.size()) + 1;
    return d + f * (f - 1) / 2;
  }
};

// out [n, width()].
template <class T>
void interact(const Vectors<const T>& in, T* out);
// grad [n, width()] of the output -> that of each vector, where `to` says.
template <class T>
void interact_backward(const Vectors<const T>& in, const T* grad, const Vectors<T>& to);

}  // namespace trireme::kernels

// DLRM's dot interaction, f32 and f64, on the host and on CUDA (Naumov et al., arXiv 1906.00091): of the vectors
// T = [x, e_1 .. e_F] of a sample, x followed by the strictly lower triangle of T T^T, row by row. Sums go in one order
// on both. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cstdint>

namespace trireme::kernels {

// The vectors of n samples: x [n, d]; e_k [n, d] at rows + place[k] * n * d, k counting from 0 to tables - 1.
template <class T>
struct Vectors {
  T *x, *rows;
  const std::int64_t* place;  // of the place, as all here
  std::int64_t tables, n, d;
};

// Of a sample's output.
template <class T>
TRIREME_BOTH std::int64_t width_of(const Vectors<T>& v) {
  return v.d + (v.tables + 1) * v.tables / 2;
}

// out [n, width_of()].
template <class T>
struct InteractJob {
  Vectors<const T> in;
  T* out;
};

// grad [n, width_of()] of the output -> that of each vector, where `to` says.
template <class T>
struct InteractBackwardJob {
  Vectors<const T> in;
  const T* grad;
  Vectors<T> to;
};

extern Kernel<InteractJob<float>> interact_f32;
extern Kernel<InteractJob<double>> interact_f64;
extern Kernel<InteractBackwardJob<float>> interact_backward_f32;
extern Kernel<InteractBackwardJob<double>> interact_backward_f64;
inline void interact(const InteractJob<float>& job, Place place) { interact_f32(job, place); }
inline void interact(const InteractJob<double>& job, Place place) { interact_f64(job, place); }
inline void interact_backward(const InteractBackwardJob<float>& job, Place place) { interact_backward_f32(job, place); }
inline void interact_backward(const InteractBackwardJob<double>& job, Place place) {
  interact_backward_f64(job, place);
}

}  // namespace trireme::kernels

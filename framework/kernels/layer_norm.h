// Layer normalisation over the last dimension. Row-major [rows, width]; host memory; parallel over rows with OpenMP.
// Results do not depend on the number of threads.
#pragma once
#include <cstdint>

namespace trireme::kernels {

// y = (x - mean) * rstd * gamma + beta. Saves mean and rstd [rows].
template <class T>
void layer_norm(const T* x, const T* gamma, const T* beta, double eps, T* y, T* mean, T* rstd, std::int64_t rows,
                std::int64_t width);

// y again from the saved statistics.
template <class T>
void layer_norm_again(const T* x, const T* gamma, const T* beta, const T* mean, const T* rstd, T* y, std::int64_t rows,
                      std::int64_t width);

// dx = residual + d(layer norm)/dx; dgamma, dbeta [width] are overwritten. residual may be null and may equal dx.
template <class T>
void layer_norm_backward(const T* dy, const T* x, const T* gamma, const T* mean, const T* rstd, const T* residual,
                         T* dx, T* dgamma, T* dbeta, std::int64_t rows, std::int64_t width);

}  // namespace trireme::kernels

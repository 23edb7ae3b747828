// Pointwise parts of an MLP, fused so that each array is touched once. Row-major [rows, width], host memory.
#pragma once
#include <cstdint>

namespace trireme::kernels {

enum class Activation : std::uint8_t {
  gelu,        // x * Phi(x), with the error function
  quick_gelu,  // x * sigmoid(1.702 x), as in OpenAI's CLIP
};

// z += bias; y = act(z). y may not alias z.
template <class T>
void bias_activation(Activation act, T* z, const T* bias, T* y, std::int64_t rows, std::int64_t width);

// dz = dy * act'(z) in place of dy; y = act(z) again; dbias [width] = column sums of dz.
template <class T>
void activation_backward(Activation act, const T* z, T* dy, T* y, T* dbias, std::int64_t rows, std::int64_t width);

// z += bias, and where `relu` z = max(z, 0); NaN stays NaN.
template <class T>
void bias_relu(T* z, const T* bias, bool relu, std::int64_t rows, std::int64_t width);

// dz = dy where y = max(z, 0) is not 0, else 0; dbias [width] = column sums of dz.
template <class T>
void relu_backward(const T* y, const T* dy, T* dz, T* dbias, std::int64_t rows, std::int64_t width);

// y = x + y + bias.
template <class T>
void bias_residual(const T* x, const T* bias, T* y, std::int64_t rows, std::int64_t width);

// sums [width] = column sums of x.
template <class T>
void column_sums(const T* x, T* sums, std::int64_t rows, std::int64_t width);

}  // namespace trireme::kernels

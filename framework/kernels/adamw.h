// One update of AdamW (Loshchilov and Hutter, arXiv 1711.05101) on many f32 tensors, on the host and on CUDA: each
// value, gradient and moment is read once, value and moments written once. (C++17: nvcc sees it.)
#pragma once
#include "comm/both.h"
#include "comm/twins.h"

#include <cmath>
#include <cstdint>

namespace trireme::kernels {

struct AdamWTensor {
  float* value = nullptr;
  const float* grad = nullptr;
  float *first = nullptr, *second = nullptr;
  std::int64_t count = 0;
};

// Scalars by pointer are f32 and lie in the place.
struct AdamWJob {
  const AdamWTensor* tensors = nullptr;  // in host memory, read before the call returns
  std::int64_t count = 0;
  const float* updates = nullptr;    // done, this one included
  const float* device_lr = nullptr;  // null: lr
  const float* scale = nullptr;      // what gradients are divided by; null: 1
  const float* skip = nullptr;       // not null, and not 0: nothing changes
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};
extern Kernel<AdamWJob> adamw;

// What is the same for all elements.
struct AdamWStep {
  float beta1, rest1, beta2, rest2, eps, decay, step, root, inverse_scale;
};

inline TRIREME_BOTH AdamWStep adamw_step(const AdamWJob& job) {
  const double n = *job.updates, lr = job.device_lr ? static_cast<double>(*job.device_lr) : job.lr;
  AdamWStep s;
  s.beta1 = static_cast<float>(job.beta1);
  s.rest1 = static_cast<float>(1 - job.beta1);
  s.beta2 = static_cast<float>(job.beta2);
  s.rest2 = static_cast<float>(1 - job.beta2);
  s.eps = static_cast<float>(job.eps);
  s.decay = static_cast<float>(lr * job.weight_decay);
  s.step = static_cast<float>(lr / (1 - pow(job.beta1, n)));
  s.root = static_cast<float>(1 / sqrt(1 - pow(job.beta2, n)));
  s.inverse_scale = job.scale ? 1 / *job.scale : 1.0f;
  return s;
}

// Multiplications and additions are fused where it says so and nowhere else: so the twins agree bit by bit.
inline TRIREME_BOTH void adamw_element(const AdamWStep& s, float grad, float& value, float& first, float& second) {
  const float g = grad * s.inverse_scale;
  first = fmaf(s.beta1, first, s.rest1 * g);
  second = fmaf(s.beta2, second, s.rest2 * g * g);
  const float change = first / fmaf(sqrtf(second), s.root, s.eps);
  value = fmaf(-s.step, change, fmaf(-s.decay, value, value));
}

}  // namespace trireme::kernels

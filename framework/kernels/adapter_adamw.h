// One step of AdamW for many small jobs at once, each with its own learning rate, weight decay, step count and gradient
// clipping (PyTorch's clip_grad_norm_: by clip / (norm + 1e-6)), and without a word to the host: a job whose loss or
// gradient is not finite is ended, the others never notice. On the host and on CUDA. (C++17: nvcc sees it.)
#pragma once
#include "comm/twins.h"
#include "framework/kernels/adamw.h"

#include <cstdint>

namespace trireme::kernels {

constexpr std::int64_t adapter_chunk = 8192;  // values of a block

// All values of a job, flat. `working` gets the new values in bf16; null: there is no such copy.
struct AdapterValues {
  float *value = nullptr, *first = nullptr, *second = nullptr;
  const float* grad = nullptr;
  void* working = nullptr;
  std::int64_t count = 0;
  std::int64_t slot = 0;  // index into the arrays below
};

// All of the place. A job that is not alive changes nothing.
struct AdapterAdamW {
  const AdapterValues* jobs = nullptr;
  std::int64_t count = 0, longest = 0;                                  // jobs; values of the largest
  const float *lr = nullptr, *weight_decay = nullptr, *clip = nullptr;  // [slots]; a clip of 0: none
  const float* loss = nullptr;                                          // [slots] or null
  float *updates = nullptr, *alive = nullptr;                           // [slots]; counts, and 1 or 0
  float *norm = nullptr, *factor = nullptr;  // [slots]; of the gradient, and what it is multiplied by (0: no step)
  double* partial = nullptr;                 // [count, ceil(longest / adapter_chunk)]
  const double* squares = nullptr;           // [slots] or null: of whole gradients, of which these are parts
  double beta1 = 0, beta2 = 0, eps = 0;
};
extern Kernel<AdapterAdamW> adapter_adamw;

// After the sum of squares of a job's gradient, or of what is here of it, is known.
inline TRIREME_BOTH void adapter_decide(const AdapterAdamW& job, std::int64_t slot, double squares) {
  const double norm = sqrt(job.squares ? job.squares[slot] : squares), clip = job.clip[slot];
  const bool finite = norm - norm == 0 && (!job.loss || job.loss[slot] - job.loss[slot] == 0);
  job.norm[slot] = static_cast<float>(norm);
  if (!finite) job.alive[slot] = 0;
  const bool go = job.alive[slot] != 0;
  if (go) job.updates[slot] += 1;
  const double factor = clip > 0 && clip < norm + 1e-6 ? clip / (norm + 1e-6) : 1;
  job.factor[slot] = go ? static_cast<float>(factor) : 0.0f;
}

inline TRIREME_BOTH AdamWStep adapter_step(const AdapterAdamW& job, std::int64_t slot) {
  AdamWJob one;
  one.updates = job.updates + slot;
  one.device_lr = job.lr + slot;
  one.beta1 = job.beta1;
  one.beta2 = job.beta2;
  one.eps = job.eps;
  one.weight_decay = job.weight_decay[slot];
  AdamWStep step = adamw_step(one);
  step.inverse_scale = job.factor[slot];
  return step;
}

}  // namespace trireme::kernels

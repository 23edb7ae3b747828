#include "framework/kernels/adapter_adamw.h"

#include "comm/reduce.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

double sum_of_squares(const float* v, std::int64_t count) {
  double sum = 0;
  for (std::int64_t begin = 0; begin < count; begin += adapter_chunk) {
    const std::int64_t end = std::min(begin + adapter_chunk, count);
    double part = 0;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) part += static_cast<double>(v[i]) * v[i];
    sum += part;
  }
  return sum;
}

void update(const AdapterAdamW& job, const AdapterValues& t) {
  adapter_decide(job, t.slot, sum_of_squares(t.grad, t.count));
  if (job.factor[t.slot] != 0) {
    const AdamWStep s = adapter_step(job, t.slot);
    float* __restrict value = t.value, * __restrict first = t.first, * __restrict second = t.second;
    const float* __restrict grad = t.grad;
#pragma omp simd
    for (std::int64_t i = 0; i < t.count; ++i) adamw_element(s, grad[i], value[i], first[i], second[i]);
    if (t.working) narrow(DType::bf16, t.value, t.working, static_cast<std::size_t>(t.count));
  }
}

void on_host(const AdapterAdamW& job) {
#pragma omp parallel for schedule(dynamic) if (job.count > 1)
  for (std::int64_t k = 0; k < job.count; ++k) update(job, job.jobs[k]);
}

}  // namespace

constinit Kernel<AdapterAdamW> adapter_adamw("adapter_adamw", on_host);

}  // namespace trireme::kernels

#include "framework/kernels/copy_if.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

void on_host(const CopyIfJob& job) {
  if (*job.flag == 0) return;
  if (job.from)
    std::copy_n(job.from, job.count, job.to);
  else
    std::fill_n(job.to, job.count, 0.0f);
}

void rescale_on_host(const RescaleJob& job) {
  const float factor = *job.factor;
  if (factor == 1) return;
  for (std::int64_t i = 0; i < job.count; ++i) job.at[i] *= factor;
}

}  // namespace

constinit Kernel<CopyIfJob> copy_if("copy_if", on_host);
constinit Kernel<RescaleJob> rescale("rescale", rescale_on_host);

}  // namespace trireme::kernels

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

}  // namespace

constinit Kernel<CopyIfJob> copy_if("copy_if", on_host);

}  // namespace trireme::kernels

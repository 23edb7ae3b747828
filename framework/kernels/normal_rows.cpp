#include "framework/kernels/normal_rows_block.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

void on_host(const NormalRowsJob& job) {
#pragma omp parallel for
  for (std::int64_t r = 0; r < job.rows; ++r)
    for (std::int64_t c = 0; c < job.columns; c += 4) {
      const NormalFour four = normal_four(job, r, static_cast<std::uint32_t>(c / 4));
      for (std::int64_t k = 0; k < std::min<std::int64_t>(4, job.columns - c); ++k)
        job.to[r * job.columns + c + k] = four.value[k];
    }
}

}  // namespace

constinit Kernel<NormalRowsJob> normal_rows("normal_rows", on_host);

}  // namespace trireme::kernels

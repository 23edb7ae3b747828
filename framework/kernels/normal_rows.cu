#include "comm/cuda_launch.h"
#include "framework/kernels/normal_rows_block.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) normal_rows_kernel(NormalRowsJob job, std::int64_t quads) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= job.rows * quads) return;
  const std::int64_t row = i / quads, c = 4 * (i - row * quads);
  const NormalFour four = normal_four(job, row, static_cast<std::uint32_t>(c / 4));
  for (int k = 0; k < 4 && c + k < job.columns; ++k) job.to[row * job.columns + c + k] = four.value[k];
}

void on_cuda(const NormalRowsJob& job, Place place) {
  const std::int64_t quads = (job.columns + 3) / 4, all = job.rows * quads;
  if (all == 0) return;
  normal_rows_kernel<<<cuda_blocks(static_cast<std::size_t>(all), threads), threads, 0, cuda_stream(place)>>>(job,
                                                                                                              quads);
  check_launch("normal_rows");
}

const Kernel<NormalRowsJob>::Twin registered(normal_rows, on_cuda);

}  // namespace
}  // namespace trireme::kernels

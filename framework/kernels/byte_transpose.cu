// A block a tile of 128 x 128: a lane turns 4 x 4 bytes in registers, a warp reads and writes 128 bytes of a row.
#include "comm/cuda_launch.h"
#include "framework/kernels/byte_transpose.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, warps = threads / 32, tile = 128,
              each = tile / 4 / warps;  // groups of four rows of a warp

__global__ void __launch_bounds__(threads) transpose_kernel(ByteTransposeJob job) {
  __shared__ unsigned room[4][32][33];  // by byte of a lane's word, lane and group of rows
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * tile,
                     column0 = static_cast<std::int64_t>(blockIdx.x) * tile, column = column0 + 4 * lane;
  unsigned in[each][4];
#pragma unroll
  for (int k = 0; k < each; ++k) {
    const std::int64_t row = row0 + 4 * (warp + k * warps);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      in[k][i] = row < job.rows && column < job.columns
                     ? __ldg(reinterpret_cast<const unsigned*>(job.from + (row + i) * job.columns + column))
                     : 0;
  }
#pragma unroll
  for (int k = 0; k < each; ++k) {
    const unsigned low01 = __byte_perm(in[k][0], in[k][1], 0x5140), low23 = __byte_perm(in[k][2], in[k][3], 0x5140),
                   high01 = __byte_perm(in[k][0], in[k][1], 0x7362), high23 = __byte_perm(in[k][2], in[k][3], 0x7362);
    const int group = warp + k * warps;
    room[0][lane][group] = __byte_perm(low01, low23, 0x5410);
    room[1][lane][group] = __byte_perm(low01, low23, 0x7632);
    room[2][lane][group] = __byte_perm(high01, high23, 0x5410);
    room[3][lane][group] = __byte_perm(high01, high23, 0x7632);
  }
  __syncthreads();
  const std::int64_t row = row0 + 4 * lane;
#pragma unroll
  for (int k = 0; k < tile / warps; ++k) {
    const int c = warp + k * warps;
    if (row < job.rows && column0 + c < job.columns)
      *reinterpret_cast<unsigned*>(job.to + (column0 + c) * job.rows + row) = room[c % 4][c / 4][lane];
  }
}

void on_cuda(const ByteTransposeJob& job, Place place) {
  if (job.rows == 0 || job.columns == 0) return;
  const dim3 blocks(static_cast<unsigned>((job.columns + tile - 1) / tile),
                    static_cast<unsigned>((job.rows + tile - 1) / tile));
  transpose_kernel<<<blocks, threads, 0, cuda_stream(place)>>>(job);
  check_launch("byte_transpose");
}

const Kernel<ByteTransposeJob>::Twin registered(byte_transpose, on_cuda);

}  // namespace
}  // namespace trireme::kernels

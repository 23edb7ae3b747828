#include "framework/kernels/byte_transpose.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

// Tiles, so that neither side leaves the cache line by line.
void on_host(const ByteTransposeJob& job) {
  constexpr std::int64_t tile = 64;
  for (std::int64_t r0 = 0; r0 < job.rows; r0 += tile)
    for (std::int64_t c0 = 0; c0 < job.columns; c0 += tile)
      for (std::int64_t c = c0; c < std::min(c0 + tile, job.columns); ++c)
        for (std::int64_t r = r0; r < std::min(r0 + tile, job.rows); ++r)
          job.to[c * job.rows + r] = job.from[r * job.columns + c];
}

}  // namespace

constinit Kernel<ByteTransposeJob> byte_transpose("byte_transpose", on_host);

}  // namespace trireme::kernels

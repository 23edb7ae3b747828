// What every CUDA twin of a Kernel needs at its launch. Included by .cu files only.
#pragma once
#include "comm/buffer.h"
#include "comm/error.h"

#include <cstddef>

#include <cuda_runtime_api.h>

namespace trireme {

inline cudaStream_t cuda_stream(Place place) { return static_cast<cudaStream_t>(place.stream); }

// Blocks of a grid in which each does `each` items. At least one item.
inline unsigned cuda_blocks(std::size_t items, std::size_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

// After a launch. Throws CommError.
inline void check_launch(const char* kernel) {
  const cudaError_t result = cudaGetLastError();
  if (result != cudaSuccess) throw CommError(kernel, cudaGetErrorString(result));
}

// Is it a multiple of `bytes`?
inline __host__ __device__ bool aligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::size_t>(p) % bytes == 0;
}

}  // namespace trireme

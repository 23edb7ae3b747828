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

// Before a launch of the kernel with `bytes` of dynamic shared memory. A kernel that wants more than the 48 KiB of old
// is allowed all that this device has: another thread may be about to launch it with more. False: it has not as much.
inline bool allow_shared_memory(const void* kernel, std::size_t bytes, const char* name) {
  if (bytes <= 48 * 1024) return true;
  int device = 0, most = 0;
  cudaError_t result = cudaGetDevice(&device);
  if (result == cudaSuccess) result = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (result == cudaSuccess && bytes > static_cast<std::size_t>(most)) return false;
  if (result == cudaSuccess) result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (result != cudaSuccess) throw CommError(name, cudaGetErrorString(result));
  return true;
}

// Is it a multiple of `bytes`?
inline __host__ __device__ bool aligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::size_t>(p) % bytes == 0;
}

}  // namespace trireme

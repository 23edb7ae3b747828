// What torch's caching allocator and the runtime say.
#include "framework/device_info.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>

#include <cuda_runtime_api.h>

namespace trireme {
namespace {

std::int64_t peak_allocated(int device) {
  const auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::cuda::CUDACachingAllocator::getDeviceStats(c10::DeviceIndex(device)).allocated_bytes[all].peak;
}

void release() { c10::cuda::CUDACachingAllocator::emptyCache(); }

std::string name(int device) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, device) == cudaSuccess ? properties.name : "";
}

template <bool all>
std::int64_t bytes_of(int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  std::size_t left = 0, total = 0;
  if (cudaMemGetInfo(&left, &total) != cudaSuccess) return 0;
  return static_cast<std::int64_t>(all ? total : left);
}

const DeviceInfo info{peak_allocated, release, name, bytes_of<false>, bytes_of<true>};
const bool registered = [] {
  set_device_info(&info);
  return true;
}();

}  // namespace
}  // namespace trireme

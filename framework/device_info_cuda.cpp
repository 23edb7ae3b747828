// What torch's caching allocator and the runtime say.
#include "framework/device_info.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>

#include <cuda_runtime_api.h>

namespace trireme {
namespace {

constexpr auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);

// Before the first tensor the allocator knows of no device and throws.
bool used() { return c10::cuda::CUDACachingAllocator::get()->initialized(); }

auto stats(int device) { return c10::cuda::CUDACachingAllocator::getDeviceStats(c10::DeviceIndex(device)); }
std::int64_t peak_allocated(int device) { return used() ? stats(device).allocated_bytes[all].peak : 0; }
std::int64_t peak_reserved(int device) { return used() ? stats(device).reserved_bytes[all].peak : 0; }
void restart_peak(int device) {
  if (used()) c10::cuda::CUDACachingAllocator::resetPeakStats(c10::DeviceIndex(device));
}

std::int64_t total(int device) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, device) == cudaSuccess ? std::int64_t(properties.totalGlobalMem) : 0;
}

void release() {
  if (used()) c10::cuda::CUDACachingAllocator::emptyCache();
}

std::string name(int device) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, device) == cudaSuccess ? properties.name : "";
}

std::int64_t left(int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  std::size_t left = 0, total = 0;
  return cudaMemGetInfo(&left, &total) == cudaSuccess ? static_cast<std::int64_t>(left) : 0;
}

const DeviceInfo info{peak_allocated, peak_reserved, restart_peak, total, release, name, left};
const bool registered = [] {
  set_device_info(&info);
  return true;
}();

}  // namespace
}  // namespace trireme

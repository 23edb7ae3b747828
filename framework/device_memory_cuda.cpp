// What torch's caching allocator says.
#include "framework/device_memory.h"

#include <c10/cuda/CUDACachingAllocator.h>

namespace trireme {
namespace {

std::int64_t peak_allocated(int device) {
  const auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::cuda::CUDACachingAllocator::getDeviceStats(c10::DeviceIndex(device)).allocated_bytes[all].peak;
}

const bool registered = [] {
  set_peak_device_bytes(peak_allocated);
  return true;
}();

}  // namespace
}  // namespace trireme

#include "framework/device_info.h"

#include <limits>

namespace trireme {
namespace {

const DeviceInfo*& info() {
  static const DeviceInfo* found = nullptr;
  return found;
}

double gib(std::int64_t (*DeviceInfo::*what)(int), at::Device device) {
  if (!device.is_cuda() || !info()) return std::numeric_limits<double>::quiet_NaN();
  return double((info()->*what)(device.index())) / 1073741824;
}

}  // namespace

void set_device_info(const DeviceInfo* found) { info() = found; }

double peak_device_memory_gib(at::Device device) { return gib(&DeviceInfo::peak_bytes, device); }
double free_device_memory_gib(at::Device device) { return gib(&DeviceInfo::free_bytes, device); }
double device_memory_gib(at::Device device) { return gib(&DeviceInfo::total_bytes, device); }

void release_device_memory() {
  if (info()) info()->release();
}

std::string device_name(at::Device device) {
  return device.is_cuda() && info() ? info()->name(device.index()) : std::string();
}

}  // namespace trireme

#include "framework/device_memory.h"

#include <limits>

namespace trireme {
namespace {

PeakDeviceBytes& peak_bytes() {
  static PeakDeviceBytes peak = nullptr;
  return peak;
}

}  // namespace

void set_peak_device_bytes(PeakDeviceBytes peak) { peak_bytes() = peak; }

double peak_device_memory_gib(at::Device device) {
  if (!device.is_cuda() || !peak_bytes()) return std::numeric_limits<double>::quiet_NaN();
  return double(peak_bytes()(device.index())) / 1073741824;
}

}  // namespace trireme

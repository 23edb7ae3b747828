// Scratch memory of a codec on a device.
#pragma once
#include "comm/device.h"

#include <algorithm>
#include <memory>

namespace trireme {

// Device memory that is taken once, as much as was ever asked for.
class DeviceRoom {
 public:
  Buffer take(std::size_t bytes, Place place) {
    if (bytes > bytes_ || !memory_) {
      memory_.reset();
      memory_ = device_runtime()->memory(bytes_ = std::max<std::size_t>(bytes, 16));
    }
    return {memory_.get(), bytes_, DType::u8, place};
  }

 private:
  std::shared_ptr<void> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace trireme

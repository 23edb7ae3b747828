// How much of a GPU this process's tensors take.
#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace trireme {

// The most GiB that tensors had at one time since the start, by torch's allocator; not a number on a CPU and in a
// program without CUDA. Does not wait for the device.
double peak_device_memory_gib(at::Device device);

// Bytes of it. Set once, at start, by the part that is linked with CUDA.
using PeakDeviceBytes = std::int64_t (*)(int device);
void set_peak_device_bytes(PeakDeviceBytes peak);

}  // namespace trireme

// What a GPU is, and how much of it this process's tensors take.
#pragma once
#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

// The most GiB that tensors had at one time since the start, by torch's allocator; not a number on a CPU and in a
// program without CUDA. Does not wait for the device.
double peak_device_memory_gib(at::Device device);
// What a process can still have of its memory, and all of it; not a number as above.
double free_device_memory_gib(at::Device device);
double device_memory_gib(at::Device device);
// Gives back what no tensor uses, so that other processes can have it. Waits for the device.
void release_device_memory();
// As its driver calls it ("NVIDIA H100 80GB HBM3"); empty for a CPU.
std::string device_name(at::Device device);

// Set once, at start, by the part that is linked with CUDA.
struct DeviceInfo {
  std::int64_t (*peak_bytes)(int device);
  void (*release)();
  std::string (*name)(int device);
  std::int64_t (*free_bytes)(int device);
  std::int64_t (*total_bytes)(int device);
};
void set_device_info(const DeviceInfo* info);

}  // namespace trireme

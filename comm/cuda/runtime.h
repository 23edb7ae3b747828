// Internals of the CUDA part: errors, devices, events. Included by .cpp files of this folder only.
#pragma once
#include "comm/device.h"

#include <chrono>
#include <utility>

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// Throws CommError with the name of the call.
void check(cudaError_t result, const char* call);
#define TRIREME_CUDA_CHECK(call) ::trireme::cuda::check((call), #call)

// Makes `device` the calling thread's current one until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

// Is the stream's work being recorded into a CUDA graph?
bool captures(cudaStream_t stream);

// An event of a pool: making one costs a microsecond, taking one does not. Empty until record(). Recorded on a stream
// that is captured it is an edge of the graph, nothing that anybody could ask or wait for on the host: complete.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept { swap(other); }
  Event& operator=(Event&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Event();

  // The current device must be the stream's.
  void record(int device, cudaStream_t stream);
  explicit operator bool() const { return event_ != nullptr; }
  bool captured() const { return captured_; }
  bool complete() const;                  // an empty one is
  void block(cudaStream_t stream) const;  // the stream waits for it
  // Polls; false if that took longer than until `end`. `alive` may throw.
  bool wait(std::chrono::steady_clock::time_point end, const std::function<void()>& alive) const;

 private:
  void swap(Event& other) noexcept {
    std::swap(event_, other.event_);
    std::swap(device_, other.device_);
    std::swap(captured_, other.captured_);
  }
  cudaEvent_t event_ = nullptr;
  int device_ = 0;
  bool captured_ = false;
};

// A stream of its own that does not synchronise with the default one.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
};

inline cudaStream_t stream_of(Place place) { return static_cast<cudaStream_t>(place.stream); }

// Memory for one collective, ordered on a stream.
class Scratch {
 public:
  Scratch() = default;
  Scratch(std::size_t bytes, cudaStream_t stream);
  Scratch(Scratch&& other) noexcept { swap(other); }
  Scratch& operator=(Scratch&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Scratch();
  void* data() const { return data_; }

 private:
  void swap(Scratch& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(stream_, other.stream_);
  }
  void* data_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

std::unique_ptr<StreamTimer> make_timer(Place place, DeviceSink sink);

}  // namespace trireme::cuda

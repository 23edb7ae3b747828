// Numbers that change from step to step and that the host knows (learning rates, the step's number), for work that is
// recorded once: it reads them from device memory, where one copy writes them before each replay.
#pragma once
#include "framework/pinned.h"

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Used by one thread.
class StepScalars {
 public:
  explicit StepScalars(at::Device device);

  // The work of a step is enqueued from here on: it asks for the same numbers in the same order each time.
  void begin() { asked_ = 0; }
  // A scalar of `type` (f32 or f64) on the device: value() of the step that runs. The first time around it is written
  // at once, from then on by send(). `value` must stay callable.
  at::Tensor next(at::ScalarType type, std::function<double()> value);
  // Enqueues what they are now.
  void send();

 private:
  struct Slot {
    at::Tensor scalar;  // on the device
    std::function<double()> value;
  };
  at::Tensor place_of(std::size_t slot, at::ScalarType type, const at::Tensor& memory) const;

  const at::Tensor memory_;  // u8, 8 bytes a slot
  const at::Tensor values_;  // the same on the host
  PinnedBuffers pinned_;
  std::vector<Slot> slots_;
  std::size_t asked_ = 0;
  bool complete_ = false;
};

}  // namespace trireme

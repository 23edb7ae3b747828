// Steps that changed nothing because their loss or gradient was not finite. They are counted where the step runs, so
// that the host sees all of them whenever it reads.
#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace trireme {

class SkippedSteps {
 public:
  struct Seen {
    std::int64_t total = 0, first = 0;  // since the last take(); first: the number of the earliest one, if any
    std::int64_t in_a_row = 0;          // the longest row that ended or went on since then, all of its steps
  };
  struct Judged {
    at::Tensor norm, skip;  // f32 scalars: the norm; 1 = it or the loss is not finite, and nothing may change
  };

  // norm, loss: f64 scalars of one device. step: its number, from 1; device_step, where defined, says it in its place,
  // an f64 scalar there. Does not read a device.
  Judged judge(const at::Tensor& norm, const at::Tensor& loss, std::int64_t step, const at::Tensor& device_step = {});
  // Waits for the device.
  Seen take();

 private:
  at::Tensor counts_;  // f64 [4]: kernels::SkipCounts
};

}  // namespace trireme

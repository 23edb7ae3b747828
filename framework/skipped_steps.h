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

  // skip: f32 scalar, 1 = skipped. step: its number, from 1; device_step, where defined, says it in its place, an f64
  // scalar. Does not read a device.
  void count(const at::Tensor& skip, std::int64_t step, const at::Tensor& device_step = {});
  // Waits for the device.
  Seen take();

  // The same with at:: operators on `counts`, f64 [4]: the row that goes on, the longest, the first, the total.
  static void count_by_operators(at::Tensor& counts, const at::Tensor& skip, std::int64_t step,
                                 const at::Tensor& device_step = {});
  static at::Tensor none(at::Device device);

 private:
  at::Tensor counts_;
};

}  // namespace trireme

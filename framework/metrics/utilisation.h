// How much of what a device can do a training step uses: model FLOPs over its stated peak.
#pragma once
#include <string>
#include <string_view>

namespace trireme {

// TFLOP/s of dense matrix products in `precision` (f32, f64, bf16, fp16; f32 means f32, not tf32) by the vendor's data
// sheet, of a GPU as its driver names it. 0: not known.
double data_sheet_tflops(std::string_view device, std::string_view precision);

struct Utilisation {
  double tflops = 0;  // of one device
  double mfu = 0;     // of the peak; not a number where that is not known (0)
};
// flops: of all devices in one step (multiply-adds x 2).
Utilisation utilisation(double flops, double step_ms, int devices, double peak_tflops);

}  // namespace trireme

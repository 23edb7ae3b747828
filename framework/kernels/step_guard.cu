#include "comm/cuda_launch.h"
#include "framework/kernels/step_guard.h"

namespace trireme::kernels {
namespace {

__global__ void guard_kernel(StepGuardJob job) { guard_step(job); }

void on_cuda(const StepGuardJob& job, Place place) {
  guard_kernel<<<1, 1, 0, cuda_stream(place)>>>(job);
  check_launch("step guard");
}

const Kernel<StepGuardJob>::Twin registered(step_guard, on_cuda);

}  // namespace
}  // namespace trireme::kernels

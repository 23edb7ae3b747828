#include "framework/kernels/step_guard.h"

namespace trireme::kernels {

constinit Kernel<StepGuardJob> step_guard("step guard", guard_step);

}  // namespace trireme::kernels

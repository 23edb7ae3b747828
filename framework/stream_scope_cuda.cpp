// Kernels of at:: operators inside a then() run on the communicator's stream, and collectives begin after the current
// one.
#include "comm/device.h"

#include <c10/cuda/CUDAGuard.h>

namespace trireme {
namespace {

const bool registered = [] {
  set_stream_scope([](Place place, const std::function<void()>& f) {
    const auto stream = static_cast<cudaStream_t>(place.stream);
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromExternal(stream, c10::DeviceIndex(place.device)));
    f();
  });
  set_current_stream(
      [](int device) -> void* { return c10::cuda::getCurrentCUDAStream(c10::DeviceIndex(device)).stream(); });
  return true;
}();

}  // namespace
}  // namespace trireme

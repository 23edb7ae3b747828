#include "bench/device_time.h"

#include "comm/device.h"
#include "comm/error.h"
#include "framework/base/quantile.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme::bench {

void need_gpu(const std::string& benchmark) {
  if (!device_runtime() || device_runtime()->count() == 0)
    throw UsageError("bench " + benchmark, "needs a GPU", "run it where `trireme doctor` names one");
}

double device_ms(const std::function<void()>& f, int times) {
  c10::Event begin(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream({c10::kCUDA, 0});
  begin.record(stream);
  for (int i = 0; i < times; ++i) f();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) / times;
}

double DeviceArm::median() const { return quantile(ms, 0.5); }

void take_turns(std::vector<DeviceArm>& arms, int blocks, int times) {
  for (int block = -1; block < blocks; ++block)
    for (auto& arm : arms)
      if (const double ms = device_ms(arm.run, times); block >= 0) arm.ms.push_back(ms);
}

}  // namespace trireme::bench

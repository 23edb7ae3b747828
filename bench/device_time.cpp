#include "bench/device_time.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme::bench {

double device_ms(const std::function<void()>& f, int times) {
  c10::Event begin(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream({c10::kCUDA, 0});
  begin.record(stream);
  for (int i = 0; i < times; ++i) f();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) / times;
}

}  // namespace trireme::bench

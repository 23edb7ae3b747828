#include "framework/base/apart.h"

#include <chrono>
#include <cstdint>
#include <future>

namespace trireme {

std::optional<Failure> attempt_apart(Communicator& comm, const std::function<void()>& work,
                                     const std::function<void()>& tell) {
  std::future<std::optional<Failure>> running;
  if (work) running = std::async(std::launch::async, [&] { return attempt(work); });
  for (std::int64_t busy = 1; busy;) {
    busy = work && running.wait_for(std::chrono::seconds(1)) != std::future_status::ready;
    comm.all_reduce({&busy, 1, DType::i64}, Op::max).wait();
    if (tell) tell();
  }
  return work ? running.get() : std::nullopt;
}

}  // namespace trireme

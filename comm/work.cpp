#include "comm/work.h"

#include "comm/error.h"

#include <string>

namespace trireme {

void Work::wait_host(std::chrono::milliseconds timeout) {
  if (state_ && !state_->wait_host(timeout))
    throw CommError("", "a collective did not complete within " + std::to_string(timeout.count()) + " ms",
                    "look for a rank that stopped or that skipped the call");
}

Work Work::then(std::function<Work()> next) {
  if (!state_) return next();
  return Work(state_->then(std::move(next)));
}

}  // namespace trireme

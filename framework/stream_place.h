// Places in the work of a GPU, of which the host is ahead.
#pragma once
#include "comm/work.h"

#include <deque>
#include <memory>

#include <ATen/core/Tensor.h>

namespace trireme {

// Where the device's current stream is now: done once all that was enqueued is. Of a host null: it is never ahead. For
// a watchdog the collectives of a graph that was just replayed are complete there.
std::shared_ptr<Work::State> stream_place(at::Device device);

// Keeps the host from running further ahead than so many steps: where it is tells of the device, and a request to stop
// is heard in time. Two keep a device busy.
class StepsAhead {
 public:
  using PlaceOf = std::shared_ptr<Work::State> (*)(at::Device);
  explicit StepsAhead(at::Device device, std::size_t most = 2, PlaceOf place = stream_place)
      : device_(device), most_(most), place_(place) {}
  void step();  // one more is enqueued: waits for the one that was `most` before it

 private:
  const at::Device device_;
  const std::size_t most_;
  const PlaceOf place_;
  std::deque<std::shared_ptr<Work::State>> places_;
};

}  // namespace trireme

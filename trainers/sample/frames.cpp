#include "trainers/sample/frames.h"

#include <utility>

namespace trireme::sample {

Frame::Frame(Image decoded) : image(std::move(decoded)), values(planes_of(image)) {
  const std::int64_t now = ++alive;
  for (auto most = most_alive.load(); most < now && !most_alive.compare_exchange_weak(most, now);) {
  }
}

}  // namespace trireme::sample

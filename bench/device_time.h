// How long a GPU takes, by its own clock.
#pragma once
#include <functional>

namespace trireme::bench {

// Mean ms of one of `times` calls in a row of what `f` enqueues on the current stream of the first GPU.
double device_ms(const std::function<void()>& f, int times = 20);

}  // namespace trireme::bench

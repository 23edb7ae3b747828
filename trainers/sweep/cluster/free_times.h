// When each GPU falls free, sorted. Tasks are placed in the order of their starts: one of g GPUs starts when the g-th
// falls free, and every left-shifted schedule comes about so from some order.
#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

namespace trireme::cluster {

template <class Time>
Time start_of(std::span<const Time> free, int gpus) {
  return free[std::size_t(gpus) - 1];
}

// Returns the start. `free` stays sorted.
template <class Time>
Time place(std::span<Time> free, int gpus, Time duration) {
  const Time start = free[std::size_t(gpus) - 1], end = start + duration;
  std::size_t at = 0, from = std::size_t(gpus);
  for (; from < free.size() && free[from] < end; ++at, ++from) free[at] = free[from];
  std::fill_n(free.begin() + std::ptrdiff_t(at), gpus, end);
  return start;
}

}  // namespace trireme::cluster

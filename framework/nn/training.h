// What a training forward needs beside its input. Where a null pointer stands in its place, a model evaluates.
#pragma once
#include <cstdint>
#include <span>

namespace trireme {
class Communicator;
}

namespace trireme::nn {

struct Training {
  std::uint64_t seed = 0;
  std::int64_t epoch = 0;
  std::span<const std::int64_t> ids;   // the samples of the input's rows: they key what is drawn, on any rank
  Communicator* statistics = nullptr;  // the ranks whose rows batch statistics are taken over; null: this one
  bool moves_statistics = true;        // false in a first pass whose rows come again
};

}  // namespace trireme::nn

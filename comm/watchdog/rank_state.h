// What a rank is doing, as the watchdogs tell each other and as a rank writes it down.
#pragma once
#include "comm/flight_recorder.h"

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct CallState {
  std::uint64_t sequence = 0;
  std::string operation, dtype, site;
  std::uint64_t count = 0, bytes = 0;  // of the buffer
  bool complete = false;
  double age = 0;          // seconds since it was entered
  bool continued = false;  // posted by a then(): other ranks may have numbered it otherwise
};

struct LogState {
  std::string name;
  int rank = 0, size = 1;        // in this communicator
  std::uint64_t entered = 0;     // sequence of the last call
  std::uint64_t waiting = 0;     // the host waits in this call; 0: it does not
  std::vector<CallState> calls;  // the last ones, oldest first
};

struct RankState {
  std::string phase;  // what the training thread was last seen in
  std::int64_t step = 0;
  double phase_age = 0, oldest = 0;  // seconds; oldest: age of the oldest call that is not complete
  std::vector<LogState> logs;
  double quiet = 0, allowed = 0;  // seconds since its last sign of life, and that it may be so (0: for any time)
};

// Seconds since a time of the steady clock.
using AgeOf = std::function<double(std::int64_t begin_ns)>;
// `calls`: how many of each log.
std::vector<LogState> log_states(const FlightRecorder& recorder, std::size_t calls, const AgeOf& age);

// When a call was last entered or seen to end, or a sign was given, by the steady clock: a rank that makes any, be it
// alone, is at work.
std::int64_t last_sign(const FlightRecorder& recorder);

std::string encode(const RankState& state);
// Of bytes that another process sent; empty if they are not a state.
std::optional<RankState> decode(std::string_view bytes);

// hang.rankR.json: the rank, its state and the last 256 calls of every communicator.
std::string flight_record(int rank, const RankState& state, const FlightRecorder& recorder);

}  // namespace trireme

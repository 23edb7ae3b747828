// A program of which one process stops itself at a place that the test names (stop_at.c): what the test does then comes
// neither before nor after what it is meant to meet, on a machine of any speed.
#pragma once
#include "tests/fault/program.h"

namespace trireme::test {

inline Words stopping_at(const std::string& place) { return {"LD_PRELOAD=" TRIREME_STOP_AT, "STOP_AT=" + place}; }

// What rank 0 has written once step `s` is over.
inline std::string logged_step(int s) { return "{\"step\": " + std::to_string(s) + ","; }

inline bool is_stopped(pid_t p) {
  const std::string stat = read_text("/proc/" + std::to_string(p) + "/stat");
  const auto name_end = stat.rfind(") ");
  return name_end != stat.npos && stat[name_end + 2] == 'T';
}

// The process that has stopped itself; 0 if the program ended and none had.
inline pid_t await_stopped(Program& program) {
  pid_t found = 0;
  wait_until([&] {
    for (const pid_t p : program.processes())
      if (is_stopped(p)) found = p;
    return found != 0 || program.ended();
  });
  return found;
}

}  // namespace trireme::test

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

// One of them that has stopped itself, or 0.
inline pid_t stopped_of(const std::vector<pid_t>& processes) {
  const auto found = std::find_if(processes.begin(), processes.end(), is_stopped);
  return found == processes.end() ? 0 : *found;
}

// The process that has stopped itself; 0 if the program ended and none had.
inline pid_t await_stopped(Program& program) {
  pid_t found = 0;
  wait_until([&] { return (found = stopped_of(program.processes())) != 0 || program.ended(); });
  return found;
}

inline std::string status_of(pid_t p) { return read_text("/proc/" + std::to_string(p) + "/status"); }

// A line of a status, "ShdPnd:" (has come and waits) or "SigCgt:" (is caught): is `s` one of its signals?
inline bool has_signal(const std::string& status, const std::string& line, int s) {
  const auto at = status.find(line);
  return at != status.npos && (std::stoull(status.substr(at + line.size()), nullptr, 16) >> (s - 1) & 1);
}

}  // namespace trireme::test

// The one error type and the exit codes. Every failure a user can meet is an Error with three parts:
// where it happened, what is wrong, and what to do. `main` prints it as one line and exits with the code.
#pragma once
#include <stdexcept>
#include <string>
#include <string_view>

namespace trireme {

// Fixed: scripts and batch systems rely on these numbers.
enum class ExitCode : int {
  ok = 0,
  bug = 1,            // an internal invariant broke
  usage = 2,          // wrong command line or config
  data = 3,           // data or file error
  communication = 4,  // communication failure, hang or a lost rank
  nonfinite = 5,      // loss or gradient not finite
  memory = 6,         // out of memory
  stopped = 85,       // stopped by a signal after a checkpoint; requeue
  killed = 130,       // second signal
};

class Error : public std::runtime_error {
 public:
  // `where` is a place ("a.yaml:3:5", "rank 1, step 12"), `cure` what the user can do; both may be empty.
  Error(ExitCode code, std::string_view where, std::string_view what, std::string_view cure = {});
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct UsageError : Error {
  UsageError(std::string_view where, std::string_view what, std::string_view cure = {})
      : Error(ExitCode::usage, where, what, cure) {}
};
struct DataError : Error {
  DataError(std::string_view where, std::string_view what, std::string_view cure = {})
      : Error(ExitCode::data, where, what, cure) {}
};
struct CommError : Error {
  CommError(std::string_view where, std::string_view what, std::string_view cure = {})
      : Error(ExitCode::communication, where, what, cure) {}
};

}  // namespace trireme

// Where in the program this thread posts its collectives, for the flight recorder and the watchdog:
//   CallSite here("reducer: bucket", 3);   // until the end of the block; the innermost one counts
// Costs two stores of a thread-local.
#pragma once

namespace trireme {

struct CallLabel {
  const char* what = "";
  int index = -1;  // which one of several; -1: there is one
};

class CallSite {
 public:
  // `what` is a literal: it must live as long as the program.
  explicit CallSite(const char* what, int index = -1) : before_(current) { current = {what, index}; }
  ~CallSite() { current = before_; }
  CallSite(const CallSite&) = delete;
  CallSite& operator=(const CallSite&) = delete;

  static CallLabel here() { return current; }

 private:
  inline static thread_local constinit CallLabel current = {};
  const CallLabel before_;
};

}  // namespace trireme

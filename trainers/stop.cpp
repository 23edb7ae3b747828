#include "trainers/stop.h"

#include "comm/error.h"

#include <csignal>

#include <unistd.h>

namespace trireme {
namespace {

volatile std::sig_atomic_t requests = 0;

void on_signal(int signal) {
  if (signal != SIGUSR1 && requests) _exit(int(ExitCode::killed));
  requests = 1;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int s : {SIGTERM, SIGINT, SIGUSR1}) sigaction(s, &action, nullptr);
}

bool stop_requested() { return requests != 0; }

}  // namespace trireme

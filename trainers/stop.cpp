#include "trainers/stop.h"

#include "comm/error.h"

#include <csignal>

#include <unistd.h>

namespace trireme {
namespace {

volatile std::sig_atomic_t requests = 0, insists = 0, may_exit = 1;

void on_signal(int signal) {
  if (requests && (signal == SIGTERM || signal == SIGINT)) {
    if (may_exit) _exit(int(ExitCode::killed));
    insists = 1;
  }
  requests = 1;
}

void handle(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int s : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP}) {
    struct sigaction before {};
    if (s == SIGHUP && sigaction(s, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    sigaction(s, &action, nullptr);
  }
}

}  // namespace

void catch_stop_signals(Insisting insisting) {
  may_exit = insisting == Insisting::exits;
  handle(on_signal);
}

void end_on_stop_signals() { handle(SIG_DFL); }

bool stop_requested() { return requests != 0; }
bool stop_insisted() { return insists != 0; }

}  // namespace trireme

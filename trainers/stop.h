// Stop requests. The first SIGTERM, SIGINT or SIGUSR1 asks for a checkpoint and exit 85; a second SIGTERM or SIGINT
// exits at once with 130.
#pragma once

namespace trireme {

void catch_stop_signals();
bool stop_requested();

}  // namespace trireme

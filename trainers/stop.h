// Stop requests. The first SIGTERM, SIGINT, SIGUSR1, SIGUSR2 or SIGHUP (where it is not ignored, as under nohup) asks
// for a checkpoint and exit 85. A SIGTERM or SIGINT after it insists: exit 130. The others are repeated by batch
// systems and never insist.
#pragma once

namespace trireme {

enum class Insisting { exits, is_noted };

// Process-wide. A parent of ranks only notes who insists: it has others to end first.
void catch_stop_signals(Insisting insisting = Insisting::exits);
// Undoes it: each of these signals ends the process. Of ranks that have nothing to save.
void end_on_stop_signals();

bool stop_requested();
bool stop_insisted();

}  // namespace trireme

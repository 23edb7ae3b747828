// Every communicator backend of this program. A backend registers itself in its own file, and the contract
// tests run whatever is registered.
#pragma once
#include "comm/communicator.h"
#include "comm/registry.h"

namespace trireme {

enum class Ranks : std::uint8_t {
  threads,    // run() starts all ranks itself
  processes,  // every rank is a process that a launcher started; run() takes the place it finds, once a
              // process
};

struct CommunicatorEntry {
  std::string_view name;
  Ranks ranks;
  // Calls `rank_main` for every rank of a group of n (threads), or for this process's (processes).
  std::function<void(int n, const std::function<void(Communicator&)>& rank_main)> run;
  std::string (*missing)(int n) = nullptr;  // why a group of n cannot run here; null or "": it can
  bool device = false;                      // moves memory of the device that is current in rank_main
};

using Communicators = Registry<CommunicatorEntry>;

}  // namespace trireme

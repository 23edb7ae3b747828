// N ranks as N threads of this process: a complete backend without MPI, for tests and for debugging.
#pragma once
#include "comm/communicator.h"
#include "comm/local/self.h"

#include <functional>

namespace trireme {

// Runs `rank_main` on n threads, each with its own communicator of the same group, and returns when all have
// ended. The first exception wakes every other rank (their collectives throw CommError) and is rethrown here.
// A rank that returns while others still wait for it in a collective is an error too. abort() of these
// communicators throws nothing: it fails the group with `why` as its first error.
void run_loopback(int n, const std::function<void(Communicator&)>& rank_main);

}  // namespace trireme

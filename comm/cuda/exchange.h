// Internals of mpi_cuda: how one collective reaches the other ranks' device memory.
#pragma once
#include "comm/cuda/ipc.h"
#include "comm/cuda/script.h"

namespace trireme::cuda {

// The memory of every rank, opened here.
struct Peers {
  std::vector<Imported> memory;
  std::vector<std::size_t> counts;  // of all ranks, one after the other
};

struct Shared {
  const void* memory = nullptr;               // what this rank lets the others use
  std::vector<std::size_t> counts;            // and tells them
  Pieces pieces;                              // what to do where memory cannot be opened
  std::size_t piece = 0;                      // > 0: pieces.count follows from the largest count of any rank
  std::function<void(const Peers&)> kernels;  // enqueues this rank's part
};

// Adds the stages: all ranks tell each other where their memory is, run their kernels and wait for
// everybody's; or go through the pieces.
void exchange(HostDriven& group, Script& script, Shared call);

// Collective. Can every rank use every rank's device memory? Tried, and agreed by all.
bool can_share_memory(HostDriven& group);

}  // namespace trireme::cuda

// The `mpi` backend. Collectives are our own, on MPI_Isend/MPI_Irecv between nodes and on shared memory
// within one, with sums in rank order: results are bit-identical on both transports, for any chunk size, and
// to loopback.
//
// Test hooks (environment; they never change a result):
//   TRIREME_MPI_TRANSPORT=p2p     messages also within a node
//   TRIREME_MPI_TRANSPORT=staged  shared memory, but no rank reads another's private memory
//   TRIREME_MPI_CHUNK=BYTES       largest message and piece staged in shared memory (default INT_MAX)
//   TRIREME_MPI_TAGS=N            highest tag of a message (default and most: what MPI has)
#pragma once
#include "comm/communicator.h"

#include <climits>
#include <functional>

namespace trireme {

struct MpiOptions {
  bool shared_memory = true, read_peers = true;
  std::size_t chunk_limit = INT_MAX;  // bytes, at most INT_MAX
  int highest_tag = INT_MAX;
  static MpiOptions from_environment();
};

// MPI of this process: one object, made by main before any communicator. Works with and without mpirun (size
// 1).
class MpiWorld {
 public:
  // MPI_Init_thread with MPI_THREAD_SERIALIZED. Throws CommError if MPI cannot give that.
  explicit MpiWorld(const MpiOptions& options = MpiOptions::from_environment());
  // Ends the progress thread but never finalizes: on an exception that would hang while peers wait. Call
  // abort().
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  Communicator& world();
  int node_rank() const;  // among the ranks of this node
  int node_size() const;
  // Collective, the success path only: completes every operation, also those whose Work was dropped, then
  // finalizes. Communicators may be destroyed after it but no longer used.
  void finalize();
  // Prints `trireme: error: why` and ends all ranks with `code`.
  [[noreturn]] void abort(int code, std::string_view why) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `rank_main(world, rank on this node)` for this process of `n` that a launcher started, and ends the job if it
// throws. Once a process.
void run_mpi(const MpiOptions& options, int n, const std::function<void(Communicator&, int)>& rank_main);

// How a communicator of this backend moves data: "messages", "shared memory", or "shared memory, one copy" where ranks
// read each other's private memory (others: "none").
std::string_view mpi_transport(const Communicator& communicator);

}  // namespace trireme

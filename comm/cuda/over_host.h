// CUDA buffers over a host communicator (mpi). Between ranks of one node that can open each other's memory
// (CUDA IPC) a kernel of each rank reads all ranks' buffers where they are; otherwise data goes through
// pinned host memory in pieces, and the host communicator moves it. Both sum in rank order: bits as for host
// buffers.
//
// The host drives every transfer, on a thread of its own: wait() blocks the caller until the last copy is
// enqueued (IPC: until all ranks are done), so collectives cannot be captured into a CUDA graph.
//
// Memory that was sent through IPC stays mapped in the peers until their program ends: programs that free and
// allocate device memory in every step (and no caching allocator does) would keep it alive there.
//
// Test hook (environment; it never changes a result): TRIREME_CUDA_TRANSPORT=staged does without IPC;
// TRIREME_MPI_CHUNK also bounds the pieces.
#pragma once
#include "comm/device.h"

namespace trireme {

// Collective over `host`; see device.h.
std::unique_ptr<Communicator> over_host(std::unique_ptr<Communicator> host, int device, DeviceSink sink = {});

// How such a communicator moves data: "CUDA IPC" or "pinned staging" (others: "none").
std::string_view cuda_transport(const Communicator& communicator);

}  // namespace trireme

// The arms of bench comm --device cuda: ours over NCCL, and bare NCCL as a plain program calls it.
#pragma once
#include "bench/bench.h"
#include "bench/collectives.h"

#include <functional>
#include <memory>

namespace trireme::bench {

// Serves one of them on a rank with a GPU of its own.
void serve_comm_on_device(const Options& o, Communicator& world);

// Calls of NCCL on the stream of a Place, and its end on the host: returns when it is there.
using BareCall = std::function<void(const Exchange&, Place)>;
// Collective over `host`: makes a communicator. Set once, at start, by the part that is linked with CUDA.
using MakeBareNccl = BareCall (*)(Communicator& host);
void set_bare_nccl(MakeBareNccl);

}  // namespace trireme::bench

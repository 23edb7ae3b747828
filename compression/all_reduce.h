// The way of codecs of fixed size through all_reduce (collectives.h): memory is laid out before anything is sent, so it
// runs on a device without waiting for it.
#pragma once
#include "compression/collectives.h"

namespace trireme {

Work all_reduce_fixed_size(Communicator& comm, Compressor& codec, Buffer inout, double bound,
                           const ErrorFeedback* feedback, Buffer scratch);

// Elements of the shard of `rank`.
std::size_t part_of_shard(std::size_t count, std::size_t shard, int rank);

}  // namespace trireme

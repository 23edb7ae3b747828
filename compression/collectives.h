// Collectives whose bytes a codec makes. Compression is explicit at the call; the communicators know nothing of it.
//
// The codec and the buffers must stay valid until the Work is complete, and one codec object serves one collective
// at a time (encode also runs where the communicator makes progress). f32 in host memory; all_reduce with a codec of
// fixed size that is on_device() also on a device, where nothing waits for it.
#pragma once
#include "comm/communicator.h"
#include "compression/compressor.h"

namespace trireme {

// As Communicator::all_to_all; bounds[r]: largest absolute error of what goes to rank r (0: the codec's own).
// Sizes travel first unless the codec's are fixed.
Work all_to_all(Communicator& comm, Compressor& codec, ConstBuffer in, std::span<const std::size_t> send,
                std::span<const double> bounds, Buffer out, std::span<const std::size_t> recv);

// What compression lost so far, added to the next call (error feedback, Karimireddy et al., ICML'19). Both start as
// zeros and belong to the state of a run.
struct ErrorFeedback {
  Buffer sent;   // count elements: of this rank's contribution
  Buffer owned;  // shard elements: of the sums that this rank passes on
  // Set: these are added instead, and kept, so that a step can be taken back.
  ConstBuffer sent_before = {}, owned_before = {};
};

// Elements of a buffer of `count` that one of `ranks` ranks sums: multiples of 256, so that codes of shards are as
// long as the code of the whole.
std::size_t shard_size(std::size_t count, int ranks);

// Sum over ranks, equal on all of them. A summable codec: encode, all_reduce of the codes, decode. Any other: every
// rank encodes its shards for their owners (all_to_all), owners decode and sum in rank order, encode the sums for
// everybody (all_gather). With `feedback` null what is lost is lost. `bound` applies to each of the encodings.
// scratch: u8, all_reduce_scratch() of them, where `inout` lies; on the host it may be left out. What is in it is of no
// use afterwards.
Work all_reduce(Communicator& comm, Compressor& codec, Buffer inout, double bound, const ErrorFeedback* feedback,
                Buffer scratch = {});
// 0 for a codec that is not of fixed size.
std::size_t all_reduce_scratch(const Compressor& codec, std::size_t count, int ranks);

// Bytes one rank puts on the wire in that all_reduce; only for a codec of fixed size or a summable one.
std::size_t all_reduce_bytes(const Compressor& codec, std::size_t count, int rank, int ranks);

}  // namespace trireme

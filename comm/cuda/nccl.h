// The `nccl` backend: collectives on CUDA buffers through NCCL, on a stream of the communicator's own. Host
// buffers (control traffic, fingerprints of Checked) go through the host communicator it is built on.
//
// What differs from communicator.h:
// - NCCL does not sum in rank order. Sums of floats may differ from other backends, and between counts and
//   numbers of ranks, by rounding: n ranks, at most n roundings an element; f16 and bf16 round at every hop,
//   so their error bound is n ulp of the element type and not of f32. Equal calls in an equal job give equal
//   bits on all ranks. min and max need not propagate NaN.
// - All ranks must use their nccl communicators in one order also ACROSS communicators: NCCL blocks the caller when
//   ranks first meet, and its kernels wait for each other on the device.
// - Calls beside computation (comm/beside.h) go through a second NCCL communicator of 8 thread blocks at most, on the
//   same stream, so in order with the others; made at the first such call.
// - then() runs its function at once, on the calling thread.
// - barrier(): wait() blocks the host, since no buffer names a stream.
//
// The library is loaded when first needed (libnccl.so.2), so that a program starts without it. The NCCL
// communicator is made at the first collective on device memory: an unused duplicate costs nothing.
#pragma once
#include "comm/device.h"

namespace trireme {

// Collective over `host`, which also says who takes part. `sink`: see device.h; may be empty.
std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> host, int device, DeviceSink sink = {});

std::string nccl_version();  // "2.28.9"; empty if the library cannot be loaded

}  // namespace trireme

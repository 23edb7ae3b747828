// A bucket reduced through a codec whose codes are as long as the values make them, in memory of a device. Codes must
// be as long on the wire as they are, and only the device knows that: the host waits for sizes, twice a bucket, once
// backward has been enqueued (the exception that an exact exchange needs). All else runs on a stream of its own.
#pragma once
#include "compression/compressor.h"
#include "framework/gradients/hook.h"

namespace trireme {

// Takes buckets of the host too, where codec_hook.h does with less.
std::unique_ptr<GradientHook> make_sized_hook(const HookConfig& config, const Bucket& bucket, const Communicator& comm);

}  // namespace trireme

// A bucket reduced through a codec of compression/.
#pragma once
#include "compression/compressor.h"
#include "framework/gradients/hook.h"

namespace trireme {

std::unique_ptr<GradientHook> make_codec_hook(const HookConfig& config, const Bucket& bucket, const Communicator& comm);

}  // namespace trireme

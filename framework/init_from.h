// Weights from elsewhere, at step 0.
#pragma once
#include "framework/session.h"

#include <string>

namespace trireme {

// `source`: a run folder (its newest checkpoint), a .safetensors file, or an OpenCLIP folder. Every parameter must be
// there with its shape; else DataError naming the first that is not. Collective over `comm`: all ranks load the same
// checkpoint, though the source may be a run that is writing right now, and an error of one is thrown on all.
void init_from(const std::string& source, Session& session, Communicator& comm);

}  // namespace trireme

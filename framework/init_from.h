// Weights from elsewhere, at step 0.
#pragma once
#include "framework/session.h"

#include <map>
#include <string>

namespace trireme {

// `source`: a run folder (its newest checkpoint), a .safetensors file, or an OpenCLIP folder. Every parameter must be
// there with its shape; else DataError naming the first that is not. Collective over `comm`: all ranks load the same
// checkpoint, though the source may be a run that is writing right now, and an error of one is thrown on all. Returns
// the step of that checkpoint, 0 for files.
std::int64_t init_from(const std::string& source, Session& session, Communicator& comm);

// All weights of such a source by name, on the host: those of a model beside the trained one. Of a run that keeps a
// running average, that one. `key` named the source, for errors. Collective over `comm` as init_from().
std::map<std::string, at::Tensor> weights_of(const std::string& source, const std::string& key, Communicator& comm);

// Tells other weights apart: a CRC32C over names and bytes, in hex.
std::string fingerprint(const std::map<std::string, at::Tensor>& weights);
std::string fingerprint(const std::vector<Param>& weights);  // the same of the same names and values

// A run goes on with the reference model it was started with, wherever that lies now, or with none as before:
// DataError. print: what tells it from others, empty: none. place: the user's name for it, or the key that gives one.
void archive_reference(Archive& ar, const std::string& place, const std::string& print);

}  // namespace trireme

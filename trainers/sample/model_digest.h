// Tells the models of two jobs apart, by their files.
#pragma once
#include "trainers/sample/config.h"

#include <string>

namespace trireme::sample {

// CRC32C, in hex, over names and bytes of what an arm's pictures are made from: the model's JSON, and its safetensors
// unless weights are drawn, and the file of `embeds`. Reads them all. DataError: one cannot be read.
std::string model_digest(const SampleConfig& config);

}  // namespace trireme::sample

// Small diffusion transformers that the project trained, with their prompts: out of a run's checkpoint, into a folder
// that diffusers loads.
#pragma once
#include "framework/models/dit/denoiser.h"
#include "framework/models/dit/prompts.h"

#include <memory>
#include <optional>
#include <string>

namespace trireme {

struct SavedDit {
  std::unique_ptr<Denoiser> model;
  std::unique_ptr<PromptTable> prompts;  // none: a released model's
};

// step: a number, newest or best; average: the running average, where the run keeps one. UsageError: the run is of
// another recipe; DataError: a weight is missing or of another shape.
SavedDit dit_of_run(const std::string& run, const std::string& step, bool average, at::Device device,
                    at::ScalarType type);

// Of a folder of diffusers, with prompts where it has our own. Without a type: as its tensors are. As
// denoiser_from_folder throws.
SavedDit dit_of_folder(const std::string& folder, std::optional<at::ScalarType> type);

// config.json, trireme.json, weights in files of at most `shard_bytes`, and prompts.safetensors. Makes the folder.
void export_dit(const SavedDit& dit, const std::string& folder, std::int64_t shard_bytes);

}  // namespace trireme

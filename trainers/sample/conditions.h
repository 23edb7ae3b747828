// What pictures are drawn from: embeddings of prompts, and where their noise comes from.
#pragma once
#include "framework/sampler.h"
#include "trainers/sample/config.h"

#include <memory>

#include <nlohmann/json_fwd.hpp>

namespace trireme::sample {

// Of one arm. Pictures are numbered prompt by prompt, the seeds of a prompt in order.
class Conditions {
 public:
  virtual ~Conditions() = default;
  virtual const std::vector<std::string>& texts() const = 0;  // a prompt each
  // Once, before fill().
  virtual void model_loaded(const Denoiser&) {}
  // Sets condition, no_condition and x of s, whose prompts are there; `shape` of one latent. Tensors on the model's
  // device, text in its type.
  virtual void fill(Sampling& s, at::IntArrayRef shape, const SampleContext& context) const = 0;
};

// `embeds` where the file has it; for drawn weights drawn embeddings; else by the encoder in the model's folder.
// `model`: its config. UsageError or DataError: what does not fit the model, before any weight is read.
std::unique_ptr<Conditions> read_conditions(const SampleConfig& config, const DenoiserInfo& info,
                                            const nlohmann::json& model);

// `prompts`, or those that `held_out` asks for.
std::vector<std::string> prompts_of(const SampleConfig& config);

}  // namespace trireme::sample

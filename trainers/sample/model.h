// The denoiser of an arm, and what it will take, known before a weight is read.
#pragma once
#include "framework/graphed_denoiser.h"
#include "trainers/sample/config.h"

#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace trireme::sample {

struct ModelPlan {
  DenoiserInfo info;
  std::int64_t parameters = 0, tensors = 0;
};

// By config.json (and trireme.json) of the arm's model alone. UsageError, DataError: not there, or no layout of ours.
nlohmann::json read_model_config(const SampleConfig& config);
ModelPlan plan_model(const nlohmann::json& model);
// All its tensors. `each`: called after each that is read.
std::unique_ptr<Denoiser> load_model(const SampleConfig& config, const nlohmann::json& model, at::Device device,
                                     const std::function<void()>& each = {});

at::ScalarType precision_of(const SampleConfig& config);
RecordedForwards recorded_forwards(const SampleConfig& config);

// A line of what a rank of the arm will hold, with its formula, and its bytes. `ranks`: of the job.
struct MemoryPlan {
  double bytes = 0;
  std::string text;
};
std::string gib(double bytes);  // "1.25 GiB"
MemoryPlan plan_memory(const SampleConfig& config, const ModelPlan& model, int ranks);
// Bytes that a rank can have: what is free now, shared by the ranks of a machine or of a GPU; 0: not known.
double memory_there(const SampleConfig& config, at::Device device, int local_ranks);

}  // namespace trireme::sample

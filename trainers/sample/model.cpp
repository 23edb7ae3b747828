#include "trainers/sample/model.h"

#include "comm/device.h"
#include "comm/error.h"
#include "data/file.h"
#include "framework/device_info.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;

nlohmann::json read_object(const std::string& path) {
  const auto bytes = read_file(path, 1 << 20);
  auto json = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, false);
  if (!json.is_object()) throw DataError(path, "is no JSON object", "fetch or export the model again");
  return json;
}

}  // namespace

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes < 1e8 ? "%.4f GiB" : "%.2f GiB", bytes / (1 << 30));
  return text;
}

at::ScalarType precision_of(const SampleConfig& c) { return c.precision == "bf16" ? at::kBFloat16 : at::kFloat; }

nlohmann::json read_model_config(const SampleConfig& c) {
  if (c.model.empty())
    throw UsageError("model", "no model is named", "model: FOLDER, in diffusers' layout (config.json and safetensors)");
  if (!fs::exists(c.model))
    throw UsageError("model", c.model + " is not there", "name the transformer's folder, or make it first");
  const bool folder = fs::is_directory(c.model);
  if (!folder && c.weights != "random")
    throw UsageError("model", c.model + " is no folder", "the folder that holds config.json and the safetensors");
  auto json = read_object(folder ? c.model + "/config.json" : c.model);
  const std::string beside = (folder ? fs::path(c.model) : fs::path(c.model).parent_path()) / "trireme.json";
  if (!json.contains("trireme") && fs::exists(beside)) json["trireme"] = read_object(beside);
  return json;
}

RecordedForwards recorded_forwards(const SampleConfig& c) {
  return c.graph == "off"  ? RecordedForwards::none
         : c.graph == "on" ? RecordedForwards::shared_too
                           : RecordedForwards::alone;
}

ModelPlan plan_model(const nlohmann::json& model) {
  ModelPlan plan;
  const auto shapes = make_denoiser(model, [&plan](const DitWeight& w) {
    const auto refuse = [](const std::string& what) {
      return DataError("config.json", "asks for " + what, "take the file as diffusers wrote it");
    };
    std::int64_t bytes = 8;
    for (const auto n : w.shape)
      if (n < 1 || __builtin_mul_overflow(bytes, n, &bytes)) throw refuse("a tensor " + w.name + " beyond all memory");
    if (++plan.tensors > 65536) throw refuse("more than 65536 tensors");
    const at::Tensor t = at::empty(w.shape, at::TensorOptions(at::kMeta).dtype(at::kFloat));
    plan.parameters += t.numel();
    return t;
  });
  plan.info = shapes->info();
  return plan;
}

std::unique_ptr<Denoiser> load_model(const SampleConfig& c, const nlohmann::json& model, at::Device device,
                                     const std::function<void()>& each) {
  if (c.weights == "random") return random_denoiser(model, std::uint64_t(c.seed), device, precision_of(c));
  return denoiser_from_folder(c.model, device, precision_of(c), each);
}

MemoryPlan plan_memory(const SampleConfig& c, const ModelPlan& m, int ranks) {
  const double element = c.precision == "bf16" ? 2 : 4, width = double(m.info.heads * m.info.head_dim);
  const SampleMemory memory = c.samplers.at(c.method)->memory(
      m.info, {c.frames / m.info.patch_frames, c.size[0] / (m.info.latent_factor * m.info.patch),
               c.size[1] / (m.info.latent_factor * m.info.patch)});
  const bool halves = c.guidance != 1 && !m.info.distilled_guidance;
  // Parts of pictures come after a sketch, one forward of the batch about as large as so many of them.
  const std::int64_t at_once =
      memory.batched ? c.batch : std::max(c.batch, std::min(memory.parts_at_once, memory.parts * c.batch));
  const double rows = double(at_once) * (halves && !c.guidance_parallel ? 2 : 1);
  // Ranks that share a forward's tokens hold their parts.
  const std::int64_t each = c.ranks_per_picture ? c.ranks_per_picture : ranks;
  const std::int64_t parts =
      c.sequence == "none" || !memory.batched ? 1 : std::max<std::int64_t>(1, each / (c.guidance_parallel ? 2 : 1));
  const double tokens = double(memory.tokens) / double(parts) + double(m.info.base_text);
  const double weights = double(m.parameters) * element;
  // Residual, normalised, q, k, v, attention and an MLP four times as wide, in and out of its activation.
  const double activations = 14 * rows * tokens * width * element;
  const double kept =
      rows * double(memory.cached_layers) * 2 * (double(memory.tokens) + double(m.info.base_text)) * width * element +
      double(c.batch * memory.canvases * m.info.channels * c.frames) * double(c.size[0] / m.info.latent_factor) *
          double(c.size[1] / m.info.latent_factor) * 4;
  MemoryPlan plan{weights + activations + kept, ""};
  char text[320];
  std::snprintf(text, sizeof text,
                "memory a rank: weights %s (%.1f M x %.0f B), activations about %s (14 x %.0f pictures x %.0f tokens x "
                "%.0f x %.0f B)%s%s",
                gib(weights).c_str(), double(m.parameters) / 1e6, element, gib(activations).c_str(), rows, tokens,
                width, element, kept > 0 ? ", the method's caches " : "", kept > 0 ? gib(kept).c_str() : "");
  plan.text = text;
  return plan;
}

double memory_there(const SampleConfig& c, at::Device device, int local_ranks) {
  if (c.memory_capacity > 0) return c.memory_capacity * double(1 << 30);
  if (!device.is_cpu()) {
    const double there = free_device_memory_gib(device) * double(1 << 30);
    const int gpus = device_runtime() ? std::max(1, device_runtime()->count()) : 1;
    return there > 0 ? there / ((local_ranks + gpus - 1) / gpus) : 0;
  }
  std::ifstream info("/proc/meminfo");
  std::string name, unit;
  for (double kib = 0; info >> name >> kib; std::getline(info, unit))
    if (name == "MemAvailable:") return kib * 1024 / std::max(1, local_ranks);
  return 0;
}

}  // namespace trireme::sample

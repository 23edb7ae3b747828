#include "trainers/sample/model.h"

#include "comm/error.h"
#include "data/file.h"

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

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes < 1e8 ? "%.4f GiB" : "%.2f GiB", bytes / (1 << 30));
  return text;
}

}  // namespace

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

std::unique_ptr<Denoiser> load_model(const SampleConfig& c, const nlohmann::json& model, at::Device device) {
  if (c.weights == "random") return random_denoiser(model, std::uint64_t(c.seed), device, precision_of(c));
  return denoiser_from_folder(c.model, device, precision_of(c));
}

MemoryPlan plan_memory(const SampleConfig& c, const ModelPlan& m) {
  const double element = c.precision == "bf16" ? 2 : 4, width = double(m.info.heads * m.info.head_dim);
  const double side = double(m.info.latent_factor * m.info.patch);
  const double tokens =
      double(c.size[0]) / side * (double(c.size[1]) / side) * (double(c.frames) / double(m.info.patch_frames)) +
      double(m.info.base_text);
  const bool halves = c.guidance != 1 && !m.info.distilled_guidance && !c.guidance_parallel;
  const double rows = double(c.batch) * (halves ? 2 : 1), weights = double(m.parameters) * element;
  // Residual, normalised, q, k, v, attention and an MLP four times as wide, in and out of its activation.
  const double activations = 14 * rows * tokens * width * element;
  MemoryPlan plan{weights + activations, ""};
  char text[256];
  std::snprintf(text, sizeof text,
                "memory a rank: weights %s (%.1f M x %.0f B), activations about %s (14 x %.0f pictures x %.0f tokens x "
                "%.0f x %.0f B)",
                gib(weights).c_str(), double(m.parameters) / 1e6, element, gib(activations).c_str(), rows, tokens,
                width, element);
  plan.text = text;
  return plan;
}

double memory_there(const SampleConfig& c, at::Device device, int local_ranks) {
  if (c.memory_capacity > 0) return c.memory_capacity * double(1 << 30);
  if (!device.is_cpu()) return 0;
  std::ifstream info("/proc/meminfo");
  std::string name, unit;
  for (double kib = 0; info >> name >> kib; std::getline(info, unit))
    if (name == "MemAvailable:") return kib * 1024 / std::max(1, local_ranks);
  return 0;
}

}  // namespace trireme::sample

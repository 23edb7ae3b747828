#include "framework/models/dit/saved_dit.h"

#include "comm/error.h"
#include "framework/io/file_io.h"
#include "framework/models/saved_run.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {

SavedDit dit_of_run(const std::string& run, const std::string& step, bool average, at::Device device,
                    at::ScalarType type) {
  const SavedRun saved = read_run(run, step, average);
  const auto document = saved.text("dit_config");
  if (!document) throw UsageError(run, "is no run of dit_scenes or dit_video", "give the folder of one");
  const auto config = nlohmann::json::parse(*document);
  const auto weight = [&](const DitWeight& w) {
    const auto at = saved.weights.find(w.name);
    if (at == saved.weights.end()) throw DataError(run, "has no weight " + w.name, "it is of another version");
    if (at->second.sizes() != at::IntArrayRef(w.shape))
      throw DataError(run, w.name + " has shape " + c10::str(at->second.sizes()) + ", not " + c10::str(w.shape));
    return at->second.to(device, type, false, true);
  };
  SavedDit dit;
  dit.model = make_denoiser(config, weight);
  dit.prompts = std::make_unique<PromptTable>(PromptVocabulary::from_json(config["trireme"]["prompts"], run),
                                              dit.model->info().text_width, dit.model->info().pooled_width, weight);
  return dit;
}

SavedDit dit_of_folder(const std::string& folder, std::optional<at::ScalarType> type) {
  SavedDit dit;
  dit.model = denoiser_from_folder(folder, at::kCPU, type);
  const auto& config = dit.model->config();
  if (config.contains("trireme") && config["trireme"].contains("prompts"))
    dit.prompts = prompts_from_folder(folder, *dit.model);
  return dit;
}

void export_dit(const SavedDit& dit, const std::string& folder, std::int64_t shard_bytes) {
  make_folder(system_io(), folder);
  if (dit.prompts) dit.prompts->save(folder);
  export_denoiser(*dit.model, folder, shard_bytes);
}

}  // namespace trireme

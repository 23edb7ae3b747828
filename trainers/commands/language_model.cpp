#include "trainers/commands/language_model.h"

#include "comm/error.h"
#include "framework/models/causal_lm_load.h"
#include "framework/placement.h"
#include "trainers/run_folder.h"

#include <numeric>

namespace trireme {

void language_model_options(CommandOptions& command, LanguageModelOptions& o) {
  command.text("model", o.model, "Hugging Face folder (config.json and safetensors), or a run of causal_lm",
               command.required);
  command.text("--adapter", o.adapter, "adapter folder of PEFT");
  command.text("--device", o.device, "auto, cpu or cuda");
  command.text("--precision", o.precision, "f32, f64, bf16, or file: that of the weights in the folder");
}

std::optional<at::ScalarType> weights_type(const std::string& name) {
  if (name == "file") return std::nullopt;
  if (name == "f32") return at::kFloat;
  if (name == "f64") return at::kDouble;
  if (name == "bf16") return at::kBFloat16;
  throw UsageError("--precision", "'" + name + "' is none", "write f32, f64, bf16 or file");
}

void LanguageModel::begin(std::span<const std::int64_t> lengths) const {
  if (!store) return;
  const auto rows = std::accumulate(lengths.begin(), lengths.end(), std::int64_t(0));
  store->begin({nn::SlotRows{0, 0, rows, 0}}, false);
}

LanguageModel load_language_model(const LanguageModelOptions& o) {
  refuse_sweep(o.model);
  refuse_sweep(o.adapter);
  LanguageModel m{load_causal_lm(o.model, one_device(o.device), weights_type(o.precision)), nullptr};
  if (o.adapter.empty()) return m;
  const PeftAdapter adapter = read_peft(o.adapter);
  m.store = make_adapter_store(m.model, {&adapter.config, 1}, 1, nn::LoraBackend::loop,
                               o.adapter + "/adapter_config.json: target_modules");
  load_adapter(m.model, *m.store, 0, adapter, o.adapter);
  return m;
}

}  // namespace trireme

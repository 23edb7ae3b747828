#include "trainers/commands/language_model.h"

#include "comm/error.h"
#include "framework/models/causal_lm_load.h"
#include "framework/placement.h"

#include <numeric>

namespace trireme {

void language_model_options(CommandOptions& command, LanguageModelOptions& o) {
  command.text("model", o.model, "Hugging Face folder (config.json and safetensors), or a run of causal_lm",
               command.required);
  command.text("--adapter", o.adapter, "adapter folder of PEFT");
  command.text("--device", o.device, "auto, cpu or cuda");
  command.text("--precision", o.precision, "f32, f64, bf16, or file: that of the weights in the folder");
}

void LanguageModel::begin(std::span<const std::int64_t> lengths) const {
  if (!store) return;
  const auto rows = std::accumulate(lengths.begin(), lengths.end(), std::int64_t(0));
  store->begin({nn::SlotRows{0, 0, rows, 0}}, false);
}

LanguageModel load_language_model(const LanguageModelOptions& o) {
  std::optional<at::ScalarType> type;
  if (o.precision == "f32")
    type = at::kFloat;
  else if (o.precision == "f64")
    type = at::kDouble;
  else if (o.precision == "bf16")
    type = at::kBFloat16;
  else if (o.precision != "file")
    throw UsageError("--precision", "'" + o.precision + "' is none", "write f32, f64, bf16 or file");
  LanguageModel m{load_causal_lm(o.model, one_device(o.device), type), nullptr};
  if (o.adapter.empty()) return m;
  const PeftAdapter adapter = read_peft(o.adapter);
  m.store = make_adapter_store(m.model, {&adapter.config, 1}, 1, nn::LoraBackend::loop);
  load_adapter(m.model, *m.store, 0, adapter, o.adapter);
  return m;
}

}  // namespace trireme

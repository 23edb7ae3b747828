// A language model from a folder, with at most one adapter, for commands.
#pragma once
#include "framework/command.h"
#include "framework/models/adapters.h"

#include <memory>
#include <span>
#include <string>

namespace trireme {

struct LanguageModelOptions {
  std::string model, adapter, device = "auto", precision = "f32";
};
void language_model_options(CommandOptions& command, LanguageModelOptions& options);

struct LanguageModel {
  CausalLm model;
  std::unique_ptr<nn::AdapterStore> store;  // of one slot; null: the base alone
  // Before a pass of samples of these lengths: all of them with the adapter.
  void begin(std::span<const std::int64_t> lengths) const;
};
LanguageModel load_language_model(const LanguageModelOptions& options);

}  // namespace trireme

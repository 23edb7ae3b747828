// Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors, and its rules for which modules an
// adapter has, with which rank and scale.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct PeftConfig {
  std::string base_model;  // a folder, or whatever the adapter says
  std::int64_t rank = 8;
  double alpha = 8, dropout = 0;
  bool rslora = false;    // scale = alpha / sqrt(rank), not alpha / rank
  bool gaussian = false;  // A begins normal, not uniform
  // Entries are a module's full name, or what follows a dot in it. Where there is none: `regex`, over the full name;
  // "all-linear"; empty: those that PEFT takes for the family.
  std::vector<std::string> targets, excluded;
  std::string regex;
  std::string excluded_regex;  // over the full name, where `excluded` is empty
  // (regular expression of a name's end, value); the first that matches, in this order.
  std::vector<std::pair<std::string, std::int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
};

// What an adapter does not say in A and B alone (DoRA, biases, modules saved whole, ...) is a DataError(place) naming
// its key.
PeftConfig parse_peft_config(std::string_view json, const std::string& place);
std::string print_peft_config(const PeftConfig& config, const std::string& family);

struct PeftTarget {
  std::size_t module;  // in `modules`
  std::int64_t rank;
  double scale;
};
// By PEFT's rules, in the order of `modules` (all linears of a model but the one that makes logits, by their full
// names). UsageError(place): an entry that no module has, with the nearest; no module at all; a rank below 1.
std::vector<PeftTarget> peft_targets(const PeftConfig& config, std::span<const std::string> modules,
                                     const std::string& family, const std::string& place);

// (exclude, rank_pattern or alpha_pattern; the first of its entries that no module has); empty: all have one. PEFT
// itself passes over such entries.
std::pair<std::string, std::string> peft_unused(const PeftConfig& config, std::span<const std::string> modules,
                                                const std::string& place);

struct PeftModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  at::Tensor a, b;   // [rank, in], [out, rank]
};
struct PeftAdapter {
  PeftConfig config;
  std::vector<PeftModule> modules;  // by name
};

// Host tensors that keep the file mapped. DataError with file and tensor: a name that is no module's A or B, one
// without the other, shapes that do not go together, numbers that are not finite.
PeftAdapter read_peft(const std::string& folder);
// As f32. `family`: the model's, for fan_in_fan_out. The config comes last.
void write_peft(const std::string& folder, const PeftAdapter& adapter, const std::string& family);

}  // namespace trireme

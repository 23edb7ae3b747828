#include "comm/error.h"
#include "comm/nearest.h"
#include "data/json.h"
#include "data/text/pattern.h"
#include "framework/formats/peft.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <optional>

namespace trireme {
namespace {

using nlohmann::json;
using Ordered = nlohmann::ordered_json;

constexpr std::int64_t largest_rank = 1 << 16;

// They change what the base computes, or bring weights beside A and B.
constexpr const char* must_be_empty[] = {"use_dora",
                                         "lora_bias",
                                         "modules_to_save",
                                         "use_qalora",
                                         "use_bdlora",
                                         "layer_replication",
                                         "loftq_config",
                                         "arrow_config",
                                         "megatron_config",
                                         "target_parameters",
                                         "kasa_config",
                                         "layers_to_transform",
                                         "layers_pattern",
                                         "monteclora_config",
                                         "velora_config",
                                         "trainable_token_indices",
                                         "alora_invocation_tokens"};

[[noreturn]] void fail(const std::string& place, const std::string& key, const std::string& what) {
  throw DataError(place, key + " " + what, "use an adapter of plain LoRA");
}

bool empty(const Ordered& v) { return v.is_null() || v == false || (v.is_structured() && v.empty()) || v == ""; }

double number(const Ordered& root, const char* key, double missing, double least, double most,
              const std::string& place) {
  if (!root.contains(key) || root[key].is_null()) return missing;
  const auto& v = root[key];
  if (!v.is_number() || !(v.get<double>() >= least) || !(v.get<double>() <= most)) fail(place, key, "is out of range");
  return v.get<double>();
}

template <class T>
void read_pattern(const Ordered& root, const char* key, bool whole, std::vector<std::pair<std::string, T>>& to,
                  const std::string& place) {
  if (!root.contains(key) || empty(root[key])) return;
  if (!root[key].is_object()) fail(place, key, "is no mapping");
  for (const auto& [name, value] : root[key].items()) {
    const bool good = whole ? value.is_number_integer() && value > 0 && value <= largest_rank
                            : value.is_number() && value > 0 && std::isfinite(value.template get<double>());
    if (!good) fail(place, std::string(key) + "." + name, "is no number above 0");
    to.emplace_back(name, value.template get<T>());
  }
}

void read_names(const Ordered& v, const char* key, std::vector<std::string>& to, const std::string& place) {
  if (!v.is_array()) fail(place, key, "is no list of names");
  for (const auto& name : v) {
    if (!name.is_string() || name == "") fail(place, key, "holds what is no name");
    to.push_back(name.get<std::string>());
  }
}

void read_targets(const Ordered& root, PeftConfig& c, const std::string& place) {
  if (root.contains("target_modules") && !root["target_modules"].is_null()) {
    const auto& v = root["target_modules"];
    if (v.is_string()) {
      c.regex = v.get<std::string>();
      std::string lower = c.regex;  // as PEFT compares it
      std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char ch) { return std::tolower(ch); });
      if (lower == "all-linear") c.regex = lower;
    } else {
      read_names(v, "target_modules", c.targets, place);
    }
    if (c.regex.empty() && c.targets.empty()) fail(place, "target_modules", "is empty");
  }
  if (root.contains("exclude_modules") && !empty(root["exclude_modules"])) {
    if (root["exclude_modules"].is_string())
      c.excluded_regex = root["exclude_modules"].get<std::string>();
    else
      read_names(root["exclude_modules"], "exclude_modules", c.excluded, place);
  }
}

bool ends_as(const std::string& name, const std::string& entry) { return name == entry || name.ends_with("." + entry); }

bool listed(const std::vector<std::string>& entries, const std::string& name) {
  return std::any_of(entries.begin(), entries.end(), [&](const std::string& e) { return ends_as(name, e); });
}

// re.fullmatch(expression, .)
Pattern whole(const std::string& expression, const std::string& place) {
  const Pattern alone(expression, place);  // so that no ")" of its own closes the group below
  return Pattern("\\A(?:" + expression + ")\\z", place);
}
bool matches(const Pattern& p, const std::string& name) { return p.find(name, 0).first == 0; }

// By either form of exclude_modules.
class Excluded {
 public:
  Excluded(const PeftConfig& c, const std::string& place) : names_(c.excluded) {
    if (names_.empty() && !c.excluded_regex.empty()) expression_ = whole(c.excluded_regex, place);
  }
  bool has(const std::string& module) const {
    return expression_ ? matches(*expression_, module) : listed(names_, module);
  }

 private:
  const std::vector<std::string>& names_;
  std::optional<Pattern> expression_;
};

// Of an entry of rank_pattern or alpha_pattern.
Pattern ending(const std::string& entry, const std::string& place) {
  return whole("(?:.*\\.)?(?:" + entry + ")", place);
}

template <class T>
class Values {
 public:
  Values(const std::vector<std::pair<std::string, T>>& pattern, const std::string& place) {
    for (const auto& [key, value] : pattern) all_.emplace_back(ending(key, place), value);
  }
  T of(const std::string& module, T otherwise) const {
    for (const auto& [pattern, value] : all_)
      if (matches(pattern, module)) return value;
    return otherwise;
  }

 private:
  std::vector<std::pair<Pattern, T>> all_;
};

// Last words of names, for "did you mean".
std::vector<std::string> last_words(std::span<const std::string> modules) {
  std::vector<std::string> words;
  for (const auto& m : modules) {
    const std::string word = m.substr(m.rfind('.') + 1);
    if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
  }
  return words;
}

void check_entries(const PeftConfig& c, std::span<const std::string> modules, const std::string& place) {
  for (const auto& entry : c.targets) {
    if (std::any_of(modules.begin(), modules.end(), [&](const std::string& m) { return ends_as(m, entry); })) continue;
    const auto words = last_words(modules);
    std::string all;
    for (const auto& w : words) all += (all.empty() ? "" : ", ") + w;
    const std::string near = nearest(entry, words);
    throw UsageError(place, "the model has no linear module '" + entry + "' to adapt",
                     near.empty() ? "it has " + all : "did you mean " + near + "? It has " + all);
  }
}

}  // namespace

PeftConfig parse_peft_config(std::string_view text, const std::string& place) {
  // Order counts in the patterns; parse_json bounds the depth.
  if (!parse_json(text).is_object()) throw DataError(place, "is no JSON object, or nests too deep", "fetch it again");
  const Ordered root = Ordered::parse(text, nullptr, false);
  if (!root.contains("peft_type") || root["peft_type"] != "LORA") fail(place, "peft_type", "is not LORA");
  for (const char* key : must_be_empty)
    if (root.contains(key) && !empty(root[key])) fail(place, key, "is set, which is not built here");
  if (root.contains("bias") && root["bias"] != "none") fail(place, "bias", "is not \"none\"");
  PeftConfig c;
  c.rank = std::int64_t(number(root, "r", 8, 1, largest_rank, place));
  if (root.contains("r") && !root["r"].is_null() && root["r"] != c.rank) fail(place, "r", "is no whole number");
  c.alpha = number(root, "lora_alpha", 8, 1e-12, 1e12, place);
  c.dropout = number(root, "lora_dropout", 0, 0, 0.999999, place);
  if (root.contains("use_rslora") && !root["use_rslora"].is_boolean() && !root["use_rslora"].is_null())
    fail(place, "use_rslora", "is neither true nor false");
  c.rslora = root.contains("use_rslora") && root["use_rslora"] == true;
  if (root.contains("init_lora_weights") && root["init_lora_weights"].is_string()) {
    // PiSSA, OLoRA, CorDA and LoftQ take something out of the base.
    const std::string init = root["init_lora_weights"].get<std::string>();
    if (init != "gaussian" && init != "orthogonal" && init != "eva")
      fail(place, "init_lora_weights", "is \"" + init + "\", which may have changed the base");
    c.gaussian = init == "gaussian";
  }
  if (root.contains("base_model_name_or_path") && root["base_model_name_or_path"].is_string())
    c.base_model = root["base_model_name_or_path"].get<std::string>();
  read_pattern(root, "rank_pattern", true, c.rank_pattern, place);
  read_pattern(root, "alpha_pattern", false, c.alpha_pattern, place);
  read_targets(root, c, place);
  return c;
}

std::string print_peft_config(const PeftConfig& c, const std::string& family) {
  Ordered all;
  all["peft_type"] = "LORA";
  all["task_type"] = "CAUSAL_LM";
  all["base_model_name_or_path"] = c.base_model;
  all["r"] = c.rank;
  all["lora_alpha"] = c.alpha;
  if (c.alpha == std::floor(c.alpha) && std::fabs(c.alpha) < 1e15) all["lora_alpha"] = std::int64_t(c.alpha);
  all["lora_dropout"] = c.dropout;
  all["use_rslora"] = c.rslora;
  all["bias"] = "none";
  all["fan_in_fan_out"] = family == "gpt2";
  all["inference_mode"] = true;
  all["init_lora_weights"] = true;
  if (c.gaussian) all["init_lora_weights"] = "gaussian";
  all["target_modules"] = nullptr;
  if (!c.targets.empty())
    all["target_modules"] = c.targets;
  else if (!c.regex.empty())
    all["target_modules"] = c.regex;
  all["exclude_modules"] = nullptr;
  if (!c.excluded.empty())
    all["exclude_modules"] = c.excluded;
  else if (!c.excluded_regex.empty())
    all["exclude_modules"] = c.excluded_regex;
  all["rank_pattern"] = all["alpha_pattern"] = Ordered::object();
  for (const auto& [key, value] : c.rank_pattern) all["rank_pattern"][key] = value;
  for (const auto& [key, value] : c.alpha_pattern) all["alpha_pattern"][key] = value;
  all["peft_version"] = "0.21.2";
  return all.dump(2, ' ', false, Ordered::error_handler_t::replace) + "\n";
}

std::vector<PeftTarget> peft_targets(const PeftConfig& config, std::span<const std::string> modules,
                                     const std::string& family, const std::string& place) {
  PeftConfig c = config;
  if (c.targets.empty() && c.regex.empty())
    c.targets = family == "gpt2" ? std::vector<std::string>{"c_attn"} : std::vector<std::string>{"q_proj", "v_proj"};
  check_entries(c, modules, place);
  const bool all = c.targets.empty() && c.regex == "all-linear";
  const std::optional<Pattern> expression =
      c.targets.empty() && !all ? std::optional(whole(c.regex, place)) : std::nullopt;
  const Excluded excluded(c, place);
  const Values<std::int64_t> ranks(c.rank_pattern, place);
  const Values<double> alphas(c.alpha_pattern, place);
  std::vector<PeftTarget> found;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string& m = modules[i];
    if (excluded.has(m) || !(all || (expression ? matches(*expression, m) : listed(c.targets, m)))) continue;
    const std::int64_t rank = ranks.of(m, c.rank);
    const double alpha = alphas.of(m, c.alpha);
    if (rank < 1) throw UsageError(place, "the rank of " + m + " is below 1", "choose 1 or more");
    found.push_back({i, rank, alpha / (c.rslora ? std::sqrt(double(rank)) : double(rank))});
  }
  if (found.empty())
    throw UsageError(place, "the targets name no linear module of this model",
                     "it has modules like " + (modules.empty() ? "" : modules[0]));
  return found;
}

std::pair<std::string, std::string> peft_unused(const PeftConfig& c, std::span<const std::string> modules,
                                                const std::string& place) {
  for (const auto& entry : c.excluded)
    if (std::none_of(modules.begin(), modules.end(), [&](const auto& m) { return ends_as(m, entry); }))
      return {"exclude", entry};
  const Excluded excluded(c, place);
  if (!c.excluded_regex.empty() &&
      std::none_of(modules.begin(), modules.end(), [&](auto& m) { return excluded.has(m); }))
    return {"exclude", c.excluded_regex};
  const auto unmatched = [&](const std::string& entry) {
    const Pattern p = ending(entry, place);
    return std::none_of(modules.begin(), modules.end(), [&](const auto& m) { return matches(p, m); });
  };
  for (const auto& [entry, rank] : c.rank_pattern)
    if (unmatched(entry)) return {"rank_pattern", entry};
  for (const auto& [entry, alpha] : c.alpha_pattern)
    if (unmatched(entry)) return {"alpha_pattern", entry};
  return {};
}

}  // namespace trireme

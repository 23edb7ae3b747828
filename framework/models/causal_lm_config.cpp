#include "framework/models/causal_lm_config.h"

#include "comm/error.h"
#include "data/json.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

namespace trireme {
namespace {

using nlohmann::json;

constexpr std::int64_t widest = 1 << 20, most_tokens = 1 << 24;

struct Document {
  const json& values;
  const std::string& place;

  [[noreturn]] void fail(const std::string& key, const std::string& what, const std::string& cure) const {
    throw DataError(place, key + " " + what, cure);
  }
  bool has(const char* key) const { return values.contains(key) && !values[key].is_null(); }

  // missing < 0: the key must be there.
  std::int64_t integer(const char* key, std::int64_t missing, std::int64_t most = widest) const {
    if (!has(key)) {
      if (missing < 0) fail(key, "is missing", "fetch the whole folder again");
      return missing;
    }
    const json& v = values[key];
    if (!v.is_number_integer() || v < 1 || v > most)
      fail(key, "is " + v.dump(-1, ' ', false, json::error_handler_t::replace),
           "write an integer from 1 to " + std::to_string(most));
    return v.get<std::int64_t>();
  }
  double number(const char* key, double missing) const {
    if (!has(key)) return missing;
    const json& v = values[key];
    if (!v.is_number() || !(v.get<double>() > 0) || !std::isfinite(v.get<double>()))
      fail(key, "is " + v.dump(-1, ' ', false, json::error_handler_t::replace), "write a number above 0");
    return v.get<double>();
  }
  bool truth(const char* key, bool missing) const {
    if (!has(key)) return missing;
    if (!values[key].is_boolean()) fail(key, "is neither true nor false", "write true or false");
    return values[key].get<bool>();
  }
  std::string word(const char* key, const std::string& missing) const {
    if (!has(key)) return missing;
    if (!values[key].is_string()) fail(key, "is no text", "write it in quotes");
    return values[key].get<std::string>();
  }
  void only(const char* key, const std::string& missing, const std::string& wanted) const {
    if (const std::string is = word(key, missing); is != wanted)
      fail(key, "is '" + is + "': only '" + wanted + "' is built here", "use a model with that");
  }
};

std::string all_families() {
  std::string all;
  for (const auto& f : CausalLmConfig::families()) all += (all.empty() ? "" : ", ") + f;
  return all;
}

void read_rope(const Document& d, CausalLmConfig& c, double theta) {
  Rope& r = c.rope;
  const char* key = d.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  r.theta = d.number("rope_theta", theta);
  if (!d.has(key)) return;
  if (!d.values[key].is_object()) d.fail(key, "is no mapping", "fetch config.json again");
  const Document rope{d.values[key], d.place};
  r.theta = rope.number("rope_theta", r.theta);
  const std::string type = rope.word("rope_type", rope.word("type", "default"));
  if (type == "default") return;
  if (type != "llama3")
    d.fail(key, "has the type '" + type + "'", "only default and llama3 are built here: use a model with one of them");
  for (const char* part : {"factor", "low_freq_factor", "high_freq_factor"})
    if (!rope.has(part)) d.fail(std::string(key) + "." + part, "is missing", "fetch config.json again");
  r.factor = rope.number("factor", 0);
  r.low_freq_factor = rope.number("low_freq_factor", 0);
  r.high_freq_factor = rope.number("high_freq_factor", 0);
  r.original_positions = rope.integer("original_max_position_embeddings",
                                      d.integer("max_position_embeddings", 2048, most_tokens), most_tokens);
  if (r.high_freq_factor <= r.low_freq_factor)
    d.fail(key, "has a high_freq_factor that is not above low_freq_factor", "fetch config.json again");
}

void refuse_sliding(const Document& d) {
  const auto refuse = [&](const char* key) {
    d.fail(key, "asks for sliding attention, which is not built here", "use a model with full attention");
  };
  if (d.truth("use_sliding_window", false)) refuse("use_sliding_window");
  if (!d.has("layer_types")) return;
  if (!d.values["layer_types"].is_array()) d.fail("layer_types", "is no list", "fetch config.json again");
  for (const auto& type : d.values["layer_types"])
    if (type != "full_attention") refuse("layer_types");
}

void read_gpt2(const Document& d, CausalLmConfig& c) {
  c.vocab = d.integer("vocab_size", 50257, most_tokens);
  c.hidden = d.integer("n_embd", 768);
  c.layers = d.integer("n_layer", 12, 10000);
  c.heads = c.kv_heads = d.integer("n_head", 12);
  c.intermediate = d.integer("n_inner", 4 * c.hidden, 4 * widest);
  c.max_length = d.integer("n_positions", 1024, most_tokens);
  if (c.hidden % c.heads != 0) d.fail("n_head", "does not divide n_embd", "fetch config.json again");
  c.head_dim = c.hidden / c.heads;
  c.eps = d.number("layer_norm_epsilon", 1e-5);
  c.tied = d.truth("tie_word_embeddings", true);
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.scaled = d.truth("scale_attn_weights", true);
  c.by_layer = d.truth("scale_attn_by_inverse_layer_idx", false);
  d.only("activation_function", "gelu_new", "gelu_new");
  if (d.truth("add_cross_attention", false)) d.fail("add_cross_attention", "is true", "use a model without it");
}

void read_llama(const Document& d, CausalLmConfig& c) {
  const bool qwen = c.family == "qwen2" || c.family == "qwen3";
  c.vocab = d.integer("vocab_size", -1, most_tokens);
  c.hidden = d.integer("hidden_size", -1);
  c.intermediate = d.integer("intermediate_size", -1, 4 * widest);
  c.layers = d.integer("num_hidden_layers", -1, 10000);
  c.heads = d.integer("num_attention_heads", -1);
  c.kv_heads = d.integer("num_key_value_heads", c.heads);
  if (c.heads % c.kv_heads != 0)
    d.fail("num_key_value_heads", "does not divide num_attention_heads", "fetch config.json again");
  if (c.family == "qwen3" && !d.has("head_dim")) {
    c.head_dim = 128;
  } else {
    if (!d.has("head_dim") && c.hidden % c.heads != 0)
      d.fail("num_attention_heads", "does not divide hidden_size", "give head_dim");
    c.head_dim = d.integer("head_dim", c.hidden / c.heads);
  }
  if (c.head_dim % 2 != 0) d.fail("head_dim", "is odd: RoPE turns pairs", "fetch config.json again");
  c.eps = d.number("rms_norm_eps", 1e-6);
  c.tied = d.truth("tie_word_embeddings", false);
  c.qkv_bias = c.family == "qwen2" || d.truth("attention_bias", false);
  c.out_bias = c.family != "qwen2" && d.truth("attention_bias", false);
  c.mlp_bias = c.family == "llama" && d.truth("mlp_bias", false);
  c.qk_norm = c.family == "qwen3";
  d.only("hidden_act", "silu", "silu");
  read_rope(d, c, 10000);
  refuse_sliding(d);
  // Within its window sliding attention is full attention.
  if (c.family == "mistral" && (!d.values.contains("sliding_window") || d.has("sliding_window")))
    c.max_length = d.integer("sliding_window", 4096, most_tokens);
  if (qwen && d.values.contains("num_experts") && d.has("num_experts"))
    d.fail("num_experts", "asks for a mixture of experts", "use a dense model");
}

void read_dtype(const Document& d, CausalLmConfig& c) {
  const char* key = d.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = d.word(key, "float32");
  if (name == "float32")
    c.dtype = at::kFloat;
  else if (name == "float64")
    c.dtype = at::kDouble;
  else if (name == "bfloat16")
    c.dtype = at::kBFloat16;
  else if (name == "float16")
    c.dtype = at::kHalf;
  else
    d.fail(key, "is '" + name + "'", "write float32, float64, bfloat16 or float16");
}

void read_ends(const Document& d, CausalLmConfig& c) {
  if (!d.has("eos_token_id")) return;
  const json& v = d.values["eos_token_id"];
  for (const json& id : v.is_array() ? v : json::array({v})) {
    if (!id.is_number_integer())
      d.fail("eos_token_id", "is neither a number nor a list of them", "fetch config.json again");
    c.end_ids.push_back(id.get<std::int64_t>());
  }
}

}  // namespace

std::vector<float> Rope::frequencies(std::int64_t head_dim) const {
  std::vector<float> all;
  for (std::int64_t j = 0; j < head_dim; j += 2) {
    // In f32 and in this order, as transformers does: at position 100,000 the last bit shows.
    const float plain = 1.0f / std::pow(float(theta), float(j) / float(head_dim));
    const double wave = 2 * std::numbers::pi / double(plain), orig = double(original_positions);
    if (factor == 0 || wave < orig / high_freq_factor) {
      all.push_back(plain);
    } else if (wave > orig / low_freq_factor) {
      all.push_back(float(double(plain) / factor));
    } else {
      const double s = (orig / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
      all.push_back(float((1 - s) * double(plain) / factor + s * double(plain)));
    }
  }
  return all;
}

const std::vector<std::string>& CausalLmConfig::families() {
  static const std::vector<std::string> all{"llama", "mistral", "qwen2", "qwen3", "gpt2"};
  return all;
}

CausalLmConfig parse_causal_lm_config(std::string_view text, const std::string& place) {
  const json root = parse_json(text);
  if (!root.is_object())
    throw DataError(place, "is no JSON object, or nests deeper than 8 levels", "fetch the file again");
  const Document d{root, place};
  CausalLmConfig c;
  c.family = d.word("model_type", "");
  const auto& known = CausalLmConfig::families();
  if (std::find(known.begin(), known.end(), c.family) == known.end())
    throw DataError(place, "model_type is '" + c.family + "', no architecture that is built here",
                    "use one of " + all_families());
  if (d.has("quantization_config"))
    d.fail("quantization_config", "is set: packed weights are not read", "use the folder with plain weights");
  c.gpt2() ? read_gpt2(d, c) : read_llama(d, c);
  read_dtype(d, c);
  read_ends(d, c);
  c.document = text;
  return c;
}

std::string print_causal_lm_config(const CausalLmConfig& config, at::ScalarType dtype) {
  static const std::map<std::string, const char*> classes{{"llama", "LlamaForCausalLM"},
                                                          {"mistral", "MistralForCausalLM"},
                                                          {"qwen2", "Qwen2ForCausalLM"},
                                                          {"qwen3", "Qwen3ForCausalLM"},
                                                          {"gpt2", "GPT2LMHeadModel"}};
  json all = parse_json(config.document);
  all.erase("torch_dtype");
  if (parse_causal_lm_config(config.document, "config.json").tied != config.tied)
    all["tie_word_embeddings"] = config.tied;
  all["dtype"] = dtype == at::kDouble     ? "float64"
                 : dtype == at::kBFloat16 ? "bfloat16"
                 : dtype == at::kHalf     ? "float16"
                                          : "float32";
  all["architectures"] = json::array({classes.at(config.family)});
  return all.dump(2) + "\n";
}

}  // namespace trireme

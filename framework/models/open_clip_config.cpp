// open_clip_config.json: which of its keys are ours, which must have their defaults, which say nothing of the features.
#include "comm/error.h"
#include "comm/nearest.h"
#include "data/file.h"
#include "data/json.h"
#include "framework/models/open_clip.h"

#include <algorithm>
#include <filesystem>

namespace trireme {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Why a key may stand there.
enum class Rule {
  read,       // it is read
  free,       // it changes no feature
  absent,     // only as null, false, 0, "" or {}: what it asks for is not built
  learnable,  // only null or the word that is built
};

struct Key {
  const char* name;
  Rule rule;
  const char* word = "";
};

const std::vector<Key> top_keys{{"embed_dim", Rule::read},       {"quick_gelu", Rule::read},
                                {"vision_cfg", Rule::read},      {"text_cfg", Rule::read},
                                {"custom_text", Rule::free},     {"init_logit_scale", Rule::free},
                                {"output_dict", Rule::free},     {"nonscalar_logit_scale", Rule::free},
                                {"init_logit_bias", Rule::read}, {"multimodal_cfg", Rule::absent}};

const std::vector<Key> block_keys{
    {"ls_init_value", Rule::absent},
    {"act_kwargs", Rule::absent},
    {"norm_kwargs", Rule::absent},
    {"qk_norm", Rule::absent},
    {"scaled_cosine_attn", Rule::absent},
    {"scale_heads", Rule::absent},
    {"scale_attn", Rule::absent},
    {"scale_attn_inner", Rule::absent},
    {"scale_fc", Rule::absent},
    {"output_tokens", Rule::free},
    {"block_type", Rule::learnable, "default"},
    {"final_ln_after_pool", Rule::free}};  // of one token: a norm does not care which comes first

const std::vector<Key> vision_keys{{"layers", Rule::read},
                                   {"width", Rule::read},
                                   {"head_width", Rule::read},
                                   {"mlp_ratio", Rule::read},
                                   {"patch_size", Rule::read},
                                   {"image_size", Rule::read},
                                   {"patch_dropout", Rule::free},
                                   {"attentional_pool", Rule::absent},
                                   {"attn_pooler_queries", Rule::free},
                                   {"attn_pooler_heads", Rule::free},
                                   {"no_ln_pre", Rule::absent},
                                   {"pos_embed_type", Rule::free},
                                   {"pool_type", Rule::learnable, "tok"},
                                   {"timm_model_name", Rule::absent},
                                   {"timm_model_pretrained", Rule::free},
                                   {"timm_pool", Rule::free},
                                   {"timm_proj", Rule::free},
                                   {"timm_proj_bias", Rule::free},
                                   {"timm_drop", Rule::free},
                                   {"timm_drop_path", Rule::free}};

const std::vector<Key> text_keys{{"context_length", Rule::read},
                                 {"vocab_size", Rule::read},
                                 {"width", Rule::read},
                                 {"heads", Rule::read},
                                 {"layers", Rule::read},
                                 {"mlp_ratio", Rule::read},
                                 {"hf_tokenizer_name", Rule::free},
                                 {"tokenizer_mode", Rule::absent},
                                 {"tokenizer_kwargs", Rule::absent},
                                 {"embed_cls", Rule::absent},
                                 {"pad_id", Rule::free},
                                 {"eos_id", Rule::free},
                                 {"no_causal_mask", Rule::absent},
                                 {"pool_type", Rule::learnable, "argmax"},
                                 {"proj_bias", Rule::absent},
                                 {"proj_type", Rule::learnable, "linear"},
                                 {"hf_model_name", Rule::absent},
                                 {"hf_model_pretrained", Rule::free},
                                 {"hf_proj_type", Rule::free},
                                 {"hf_pooler_type", Rule::free}};

const std::vector<Key> preprocess_keys{{"size", Rule::read},
                                       {"mean", Rule::read},
                                       {"std", Rule::read},
                                       {"interpolation", Rule::read},
                                       {"resize_mode", Rule::read},
                                       {"fill_color", Rule::read},
                                       {"mode", Rule::learnable, "RGB"}};

// One mapping of the file, and where it stands in it.
struct Section {
  const json& values;
  std::string place, prefix;

  [[noreturn]] void fail(const std::string& key, const std::string& what, const std::string& cure) const {
    throw DataError(place, prefix + key + " " + what, cure);
  }

  void check(std::vector<Key> keys, const std::vector<Key>& more = {}) const {
    keys.insert(keys.end(), more.begin(), more.end());
    for (const auto& [name, value] : values.items()) {
      const auto key = std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return k.name == name; });
      if (key == keys.end()) {
        std::vector<std::string> names;
        for (const auto& k : keys) names.emplace_back(k.name);
        const std::string near = nearest(name, names);
        fail(name, "is no key of open_clip 3.3.0", near.empty() ? "remove it" : "did you mean " + near + "?");
      }
      const bool none =
          value.is_null() || value == false || value == 0 || value == "" || (value.is_structured() && value.empty());
      if (key->rule == Rule::absent && !none)
        fail(name, "is " + value.dump() + ": such a model is not built here", "use a CLIP without it");
      if (key->rule == Rule::learnable && !value.is_null() && value != key->word)
        fail(name, "is " + value.dump() + ": only \"" + key->word + "\" is built here", "use a CLIP with that");
    }
  }

  bool has(const char* key) const { return values.contains(key) && !values[key].is_null(); }

  std::int64_t integer(const char* key, std::int64_t missing, std::int64_t most) const {
    if (!has(key)) return missing;
    json v = values[key];
    if (v.is_array() && v.size() == 2 && v[0] == v[1]) v = json(v[0]);  // a square
    if (!v.is_number_integer() || v < 1 || v > most)
      fail(key, "is " + v.dump(), "write an integer from 1 to " + std::to_string(most));
    return v.get<std::int64_t>();
  }

  bool truth(const char* key) const {
    if (!has(key)) return false;
    if (!values[key].is_boolean()) fail(key, "is " + values[key].dump(), "write true or false");
    return values[key].get<bool>();
  }

  double number(const char* key, double missing) const {
    if (!has(key)) return missing;
    const json& v = values[key];
    if (!v.is_number() || v <= 0 || v > 64) fail(key, "is " + v.dump(), "write a number above 0, at most 64");
    return v.get<double>();
  }

  std::string word(const char* key, std::initializer_list<const char*> words) const {
    if (!has(key)) return *words.begin();
    for (const char* w : words)
      if (values[key] == w) return w;
    std::string all;
    for (const char* w : words) all += (all.empty() ? "" : ", ") + std::string(w);
    fail(key, "is " + values[key].dump(), "write one of " + all);
  }

  Section mapping(const char* key) const {
    if (!has(key) || !values[key].is_object()) fail(key, "is missing or no mapping", "see open_clip's model_configs");
    return {values[key], place, prefix + key + "."};
  }
};

void read_vision(const Section& vision, nn::ClipConfig& c) {
  vision.check(vision_keys, block_keys);
  c.image_size = vision.integer("image_size", 224, 4096);
  c.vision_width = vision.integer("width", 768, 65536);
  const std::int64_t head = vision.integer("head_width", 64, 65536);
  if (vision.has("layers") && vision.values["layers"].is_array()) {
    for (const auto& n : vision.values["layers"]) {
      if (!n.is_number_integer() || n < 1 || n > 1000)
        vision.fail("layers", "holds " + n.dump(), "write blocks of a stage");
      c.resnet_layers.push_back(n.get<std::int64_t>());
    }
    if (c.resnet_layers.size() != 4) vision.fail("layers", "has not four stages", "write four numbers of blocks");
    c.vision_heads = c.vision_width * 32 / head;
    if (c.vision_heads == 0 || c.vision_width * 32 % c.vision_heads != 0 || c.vision_width % 2 != 0)
      vision.fail("head_width", "does not divide 32 times the width", "choose a divisor");
    if (c.image_size % 32 != 0) vision.fail("image_size", "is no multiple of 32", "a ResNet halves it five times");
    return;
  }
  c.vision_layers = vision.integer("layers", 12, 1000);
  c.patch_size = vision.integer("patch_size", 16, 4096);
  c.vision_mlp_ratio = vision.number("mlp_ratio", 4);
  c.vision_heads = c.vision_width / head;
  if (c.vision_heads == 0 || c.vision_width % c.vision_heads != 0)
    vision.fail("head_width", "is " + std::to_string(head) + " beside a width of " + std::to_string(c.vision_width),
                "choose a divisor");
  if (c.image_size % c.patch_size != 0) vision.fail("patch_size", "does not divide image_size", "choose a divisor");
}

void read_text(const Section& text, nn::ClipConfig& c) {
  text.check(text_keys, block_keys);
  c.context = text.integer("context_length", 77, 4096);
  c.vocab = text.integer("vocab_size", 49408, 1000000);
  c.text_width = text.integer("width", 512, 65536);
  c.text_heads = text.integer("heads", 8, 1024);
  c.text_layers = text.integer("layers", 12, 1000);
  c.text_mlp_ratio = text.number("mlp_ratio", 4);
  if (c.text_width % c.text_heads != 0) text.fail("heads", "does not divide the width", "choose a divisor");
  if (c.context < 2 || c.vocab < 514)
    text.fail("vocab_size", "or context_length is too small", "514 and 2 are the least");
}

void read_preprocess(const Section& s, Preprocess& p) {
  s.check(preprocess_keys);
  p.size = s.integer("size", p.size, 4096);
  p.interpolation = s.word("interpolation", {"bicubic", "bilinear", "random"});
  p.resize_mode = s.word("resize_mode", {"shortest", "longest", "squash"});
  if (s.has("fill_color")) {
    const json& v = s.values["fill_color"];
    if (!v.is_number_integer() || v < 0 || v > 255) s.fail("fill_color", "is " + v.dump(), "write a level of grey");
    p.fill = v.get<std::int64_t>();
  }
  const auto three = [&](const char* key, std::array<double, 3>& to, double least) {
    if (!s.has(key)) return;
    json v = s.values[key];
    if (v.is_number()) v = json{v, v, v};
    const bool good = v.is_array() && v.size() == 3 &&
                      std::all_of(v.begin(), v.end(), [&](const json& x) { return x.is_number() && x >= least; });
    if (!good) s.fail(key, "is " + v.dump(), "write three numbers");
    to = v.get<std::array<double, 3>>();
  };
  three("mean", p.mean, -1e6);
  three("std", p.std, 1e-6);
}

}  // namespace

bool is_open_clip_folder(const std::string& path) { return fs::is_regular_file(path + "/open_clip_config.json"); }

OpenClipConfig parse_open_clip_config(std::string_view text, const std::string& place) {
  const json root = parse_json(text);
  if (!root.is_object())
    throw DataError(place, "is no JSON object, or nests deeper than 8 levels",
                    "fetch the file again, or see open_clip's push_to_hf_hub");
  const Section file{root, place, ""}, model = file.mapping("model_cfg");
  model.check(top_keys);
  OpenClipConfig c;
  if (!model.has("embed_dim")) model.fail("embed_dim", "is missing", "see open_clip's model_configs");
  c.model.embed_dim = model.integer("embed_dim", 0, 65536);
  c.model.quick_gelu = model.truth("quick_gelu");
  c.model.logit_bias = model.has("init_logit_bias") && model.values["init_logit_bias"].is_number();
  read_vision(model.mapping("vision_cfg"), c.model);
  read_text(model.mapping("text_cfg"), c.model);
  c.preprocess.size = c.model.image_size;
  if (file.has("preprocess_cfg")) read_preprocess(file.mapping("preprocess_cfg"), c.preprocess);
  if (c.preprocess.size != c.model.image_size)
    throw DataError(place, "preprocess_cfg.size is not the model's image_size", "remove preprocess_cfg.size");
  return c;
}

OpenClipConfig read_open_clip_config(const std::string& folder) {
  const std::string path = folder + "/open_clip_config.json";
  const auto bytes = read_file(path, 1 << 20);
  return parse_open_clip_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

std::string print_open_clip_config(const OpenClipConfig& config, bool tokenizer) {
  const nn::ClipConfig& c = config.model;
  json vision{{"image_size", c.image_size}, {"width", c.vision_width}};
  if (c.resnet()) {
    vision["layers"] = c.resnet_layers;
    vision["patch_size"] = nullptr;
    vision["head_width"] = c.vision_width * 32 / c.vision_heads;
  } else {
    vision["layers"] = c.vision_layers;
    vision["patch_size"] = c.patch_size;
    vision["head_width"] = c.vision_width / c.vision_heads;
    vision["mlp_ratio"] = c.vision_mlp_ratio;
  }
  json text{{"context_length", c.context}, {"vocab_size", c.vocab},   {"width", c.text_width},
            {"heads", c.text_heads},       {"layers", c.text_layers}, {"mlp_ratio", c.text_mlp_ratio}};
  // For a folder open_clip asks only whether there is a name, and reads the files beside it.
  if (tokenizer) text["hf_tokenizer_name"] = "trireme/clip";
  json model{{"embed_dim", c.embed_dim}, {"vision_cfg", vision}, {"text_cfg", text}};
  if (c.quick_gelu) model["quick_gelu"] = true;
  if (c.logit_bias) model["init_logit_bias"] = -10;  // open_clip has the parameter where this is a number
  const Preprocess& p = config.preprocess;
  const json preprocess{{"size", p.size},
                        {"mean", p.mean},
                        {"std", p.std},
                        {"interpolation", p.interpolation},
                        {"resize_mode", p.resize_mode},
                        {"fill_color", p.fill}};
  return json{{"model_cfg", model}, {"preprocess_cfg", preprocess}}.dump(2) + "\n";
}

}  // namespace trireme

// OpenCLIP's models: features of small ones that open_clip made (tests/reference/open_clip_models.py), its folders.
#include "framework/models/open_clip.h"

#include "comm/error.h"
#include "framework/formats/safetensors.h"
#include "framework/models/clip_model.h"
#include "tests/fault/program.h"
#include "tests/max_difference.h"
#include "tests/unit/reference_files.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using nlohmann::json;
using trireme::test::reference_file;

// As the script draws: splitmix64 counted from the FNV-1a hash of the name.
at::Tensor uniform(const std::string& name, at::IntArrayRef shape) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001B3;
  at::Tensor t = at::empty(shape, at::kDouble);
  double* p = t.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    std::uint64_t z = hash + std::uint64_t(i + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    p[i] = double(z >> 11) * 0x1p-52 - 1;
  }
  return t;
}

std::pair<double, double> place_and_spread(const std::string& name, const at::Tensor& t) {
  if (name.ends_with("num_batches_tracked")) return {1000, 0};
  if (name == "logit_scale") return {2.5, 1};
  if (name.find("embedding") != name.npos) return {0, 0.5};
  if (name.ends_with("running_var") || (t.dim() == 1 && name.ends_with("weight"))) return {1, 0.4};
  if (t.dim() == 1) return {0, 0.3};
  const bool from_left = name.ends_with("proj") || name == "text_projection";
  const double fan = from_left ? double(t.size(0)) : double(t.numel() / t.size(0));
  return {0, std::sqrt((t.dim() == 4 ? 4 : 3) / fan)};
}

struct Case {
  std::string name;
  json values;
  at::Tensor pixels, ids;
};

const json& reference() {
  static const json all = json::parse(read_text(reference_file("clip/open_clip_models.json")));
  return all;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& [name, c] : reference()["cases"].items()) {
    const auto& vision = c["config"]["model_cfg"]["vision_cfg"];
    const std::int64_t size = vision["image_size"], n = std::int64_t(c["ids"].size());
    const at::Tensor blocks = (2 * uniform("pixels", {n, 3, 8, 8})).to(at::kFloat);
    std::vector<std::int64_t> ids;
    for (const auto& row : c["ids"]) ids.insert(ids.end(), row.begin(), row.end());
    all.push_back(
        {name, c, blocks.repeat_interleave(size / 8, 2).repeat_interleave(size / 8, 3), at::tensor(ids).view({n, -1})});
  }
  return all;
}

at::Tensor matrix(const json& rows) {
  std::vector<double> values;
  for (const auto& row : rows) values.insert(values.end(), row.begin(), row.end());
  return at::tensor(values, at::kDouble).view({std::int64_t(rows.size()), -1});
}

ClipModel drawn(const Case& c, at::ScalarType type) {
  const OpenClipConfig config = parse_open_clip_config(c.values["config"].dump(), c.name);
  ClipModel model(config.model, config.preprocess, std::nullopt, c.name, at::kCPU, type);
  at::NoGradGuard no_grad;
  for (const auto& p : model.parameters()) {
    const auto [place, spread] = place_and_spread(p.name, p.value);
    p.value.detach().copy_(place + spread * uniform(p.name, p.value.sizes()));
  }
  return model;
}

double apart(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

TEST(OpenClip, FeaturesOfItsModels) {
  for (const Case& c : cases())
    for (const auto type : {at::kDouble, at::kFloat}) {
      SCOPED_TRACE(c.name + (type == at::kFloat ? " f32" : " f64"));
      const double bound = type == at::kFloat ? 1e-5 : 2e-9;  // the file has 9 digits
      const ClipModel model = drawn(c, type);
      EXPECT_LE(apart(model.embed_pixels(c.pixels), matrix(c.values["image"])), bound);
      EXPECT_LE(apart(model.embed_ids(c.ids), matrix(c.values["text"])), bound);
      // Out of ATen operators, as on a GPU.
      const at::Tensor end = c.ids.argmax(1).contiguous();
      at::NoGradGuard no_grad;
      EXPECT_LE(apart(model.clip().encode_image(c.pixels.to(type), false), matrix(c.values["image"])), bound);
      EXPECT_LE(
          apart(model.clip().encode_text(c.ids, {end.const_data_ptr<std::int64_t>(), std::size_t(end.numel())}, false),
                matrix(c.values["text"])),
          bound);
    }
}

TEST(OpenClip, NamesAndShapesAreItsOwn) {
  for (const Case& c : cases()) {
    const ClipModel model = drawn(c, at::kFloat);
    std::map<std::string, std::vector<std::int64_t>> ours;
    for (const auto& p : model.parameters()) ours[p.name] = p.value.sizes().vec();
    EXPECT_EQ(ours, (c.values["tensors"].get<std::map<std::string, std::vector<std::int64_t>>>())) << c.name;
  }
}

// No tensor could be read wrongly without the test of features above failing.
TEST(OpenClip, EveryTensorCounts) {
  for (const Case& c : cases()) {
    const ClipModel model = drawn(c, at::kDouble);
    const at::Tensor image = matrix(c.values["image"]), text = matrix(c.values["text"]);
    for (const auto& p : model.parameters()) {
      // A softmax does not see what all keys share; the others are no part of a feature.
      if (p.name.ends_with("k_proj.bias") || p.name.ends_with("num_batches_tracked") || p.name == "logit_scale")
        continue;
      at::NoGradGuard no_grad;
      const at::Tensor kept = p.value.clone();
      p.value.add_(0.1 * place_and_spread(p.name, p.value).second * uniform(p.name + " changed", p.value.sizes()));
      const double moved = nan_max(apart(model.embed_pixels(c.pixels), image), apart(model.embed_ids(c.ids), text));
      EXPECT_GT(moved, 1e-4) << c.name << ": " << p.name;
      p.value.copy_(kept);
    }
  }
}

TEST(OpenClip, NamedShapesAreItsOwn) {
  for (const auto& [name, theirs] : reference()["named"].items()) {
    nn::ClipConfig config;
    struct Root {
      nn::ClipConfig& model;
      void fields(Fields& f) { f.group("model", model, ""); }
    } root{config};
    Config::parse("model: {name: " + name + "}", "test").read([&](Fields& f) { root.fields(f); });
    const auto wanted = parse_open_clip_config(json{{"model_cfg", theirs}}.dump(), name);
    const Preprocess preprocess{.size = config.image_size};
    EXPECT_EQ(print_open_clip_config({config, preprocess}, false), print_open_clip_config(wanted, false)) << name;
  }
}

TEST(OpenClip, AKeyOfANamedModelMayBeAnother) {
  nn::ClipConfig config;
  const auto schema = [&](Fields& f) { config.fields(f); };
  const Config file = Config::parse("name: ViT-B-32\nimage_size: 64", "test");
  file.read(schema);
  for (int visit = 0; visit < 2; ++visit) {  // printing and comparing visit the keys again
    EXPECT_EQ(config.image_size, 64);
    EXPECT_EQ(config.vision_width, 768);
    EXPECT_NE(file.print(schema, false).find("vision_width: 768"), std::string::npos);
    EXPECT_NE(config_hash(file, schema), 0u);
  }
  nn::ClipConfig fresh;
  const auto differing = [&](const std::string& other) {
    return differing_keys(file, Config::parse(other, "test"), [&](Fields& f) { fresh.fields(f); });
  };
  EXPECT_TRUE(differing("image_size: 64\nname: ViT-B-32\nvision_width: 768").empty());
  EXPECT_EQ(differing("name: ViT-B-32"), std::vector<std::string>{"image_size"});
  EXPECT_EQ(differing("name: ViT-B-16\nimage_size: 64"), (std::vector<std::string>{"name", "patch_size"}));
}

// Config that is written is read again alike; every other computation is refused by the name of its key.
TEST(OpenClip, ConfigsOfOtherModelsAreRefused) {
  struct Wrong {
    const char* path;
    json value;
    const char* message;
  };
  const Wrong all[] = {{"/model_cfg/vision_cfg/timm_model_name", "vit_base", "vision_cfg.timm_model_name"},
                       {"/model_cfg/vision_cfg/ls_init_value", 0.1, "vision_cfg.ls_init_value"},
                       {"/model_cfg/vision_cfg/pool_type", "avg", "vision_cfg.pool_type"},
                       {"/model_cfg/vision_cfg/attentional_pool", true, "vision_cfg.attentional_pool"},
                       {"/model_cfg/vision_cfg/no_ln_pre", true, "vision_cfg.no_ln_pre"},
                       {"/model_cfg/vision_cfg/head_width", 100, "vision_cfg.head_width"},
                       {"/model_cfg/vision_cfg/patch_size", 7, "vision_cfg.patch_size"},
                       {"/model_cfg/vision_cfg/width", -1, "vision_cfg.width"},
                       {"/model_cfg/text_cfg/hf_model_name", "roberta-base", "text_cfg.hf_model_name"},
                       {"/model_cfg/text_cfg/no_causal_mask", true, "text_cfg.no_causal_mask"},
                       {"/model_cfg/text_cfg/norm_kwargs", {{"eps", 1e-6}}, "text_cfg.norm_kwargs"},
                       {"/model_cfg/text_cfg/context_lenght", 77, "did you mean context_length"},
                       {"/model_cfg/quick_gelu", 1, "quick_gelu is 1"},
                       {"/model_cfg/quick_gelu", "true", "write true or false"},
                       {"/model_cfg/text_cfg/pool_type", "", "text_cfg.pool_type"},
                       {"/model_cfg/text_cfg/heads", true, "text_cfg.heads"},
                       {"/model_cfg/multimodal_cfg", {{"width", 512}}, "multimodal_cfg"},
                       {"/preprocess_cfg/resize_mode", "crop", "resize_mode"},
                       {"/preprocess_cfg/mean", {0.5, "x", 0.5}, "preprocess_cfg.mean"}};
  for (const auto& w : all) {
    json config{{"model_cfg", cases()[1].values["config"]["model_cfg"]}, {"preprocess_cfg", json::object()}};
    EXPECT_NO_THROW(parse_open_clip_config(config.dump(), "c.json"));
    config[json::json_pointer(w.path)] = w.value;
    try {
      parse_open_clip_config(config.dump(), "c.json");
      ADD_FAILURE() << w.path << " passed";
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(w.message), std::string::npos) << e.what();
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    }
  }
  for (const char* text : {"", "[]", "{\"model_cfg\": 3}", "{\"model_cfg\": {}}", "{", "nul"})
    EXPECT_THROW(parse_open_clip_config(text, "c.json"), DataError) << text;
}

// Values are copied, compared and printed level by level.
TEST(OpenClip, DeepJsonIsRefused) {
  const std::string open(400000, '['), close(400000, ']'), deep = open + close;
  for (const std::string key : {"embed_dim", "quick_gelu", "no_such_key", "vision_cfg"})
    for (const std::string& value : {deep, "[" + deep + "," + deep + "]", open})
      EXPECT_THROW(parse_open_clip_config("{\"model_cfg\": {\"" + key + "\": " + value + "}}", "c.json"), DataError);
  EXPECT_THROW(parse_open_clip_config(deep, "c.json"), DataError);
  TempFolder folder;
  Tokenizer::train(std::vector<std::string>{"a b"}, 514).save((folder.path / "merges.txt").string());
  write_text(folder.path / "vocab.json", "{\"!\": " + deep + "}");
  EXPECT_THROW(open_clip_tokenizer(folder.path.string()), DataError);
}

class OpenClipFolder : public ::testing::Test {
 protected:
  void write(const std::function<void(std::vector<NamedTensor>&)>& change = {}) {
    const Case c = cases()[1];
    write_text(folder.path / "open_clip_config.json", c.values["config"].dump());
    std::vector<NamedTensor> tensors;
    const ClipModel model = drawn(c, at::kFloat);
    for (const auto& p : model.parameters()) tensors.push_back({p.name, p.value.detach()});
    if (change) change(tensors);
    write_safetensors((folder.path / "open_clip_model.safetensors").string(), tensors);
  }
  std::string error() const {
    try {
      load_clip(folder.path.string(), at::kCPU, at::kFloat);
      return "none";
    } catch (const DataError& e) {
      return e.what();
    }
  }
  TempFolder folder;
};

TEST_F(OpenClipFolder, LoadsAsItWasWritten) {
  write();
  const Case c = cases()[1];
  const ClipModel model = load_clip(folder.path.string(), at::kCPU, at::kFloat);
  EXPECT_LE(apart(model.embed_pixels(c.pixels), matrix(c.values["image"])), 1e-5);
  EXPECT_THROW(model.tokenizer(), UsageError);
  // Of a model with `custom_text`, and halves.
  write([](auto& tensors) {
    for (auto& t : tensors) {
      if (!t.name.starts_with("visual.") && t.name != "logit_scale") t.name = "text." + t.name;
      t.tensor = t.tensor.to(at::kHalf);
    }
  });
  EXPECT_LE(apart(load_clip(folder.path.string(), at::kCPU, at::kFloat).embed_ids(c.ids), matrix(c.values["text"])),
            1e-2);
}

TEST_F(OpenClipFolder, WeightsThatDoNotFitAreNamed) {
  write([](auto& t) { std::erase_if(t, [](const auto& x) { return x.name == "ln_final.bias"; }); });
  EXPECT_NE(error().find("ln_final.bias"), std::string::npos) << error();
  write([](auto& t) { t.push_back({"logit_bias", at::zeros({})}); });
  EXPECT_NE(error().find("logit_bias"), std::string::npos) << error();
  write([](auto& t) { t[0].tensor = at::zeros({3}); });
  EXPECT_NE(error().find("has shape"), std::string::npos) << error();
  fs::remove(folder.path / "open_clip_model.safetensors");
  EXPECT_NE(error().find("open_clip_model.safetensors"), std::string::npos) << error();
  fs::remove(folder.path / "open_clip_config.json");
  EXPECT_NE(error().find("neither"), std::string::npos) << error();
}

// A configuration may ask for any amount of memory: the file's shapes come first.
TEST_F(OpenClipFolder, ShapesAreComparedBeforeMemoryIsTaken) {
  write();
  json config = cases()[1].values["config"];
  auto& text = config["model_cfg"]["text_cfg"];
  text["width"] = 65536, text["layers"] = 1000, text["heads"] = 1024, text["vocab_size"] = 1000000;
  write_text(folder.path / "open_clip_config.json", config.dump());
  EXPECT_NE(error().find("has shape"), std::string::npos) << error();
}

TEST_F(OpenClipFolder, OptionsOfARunAreRefused) {
  write();
  const auto with = [&](const ClipWeights& w) { load_clip(folder.path.string(), at::kCPU, at::kFloat, {}, w); };
  EXPECT_NO_THROW(with({}));
  EXPECT_THROW(with({"best", true}), UsageError);
  EXPECT_THROW(with({"newest", false}), UsageError);
}

TEST_F(OpenClipFolder, TokenizerComesBack) {
  const std::vector<std::string> texts{"a red blot on the left", "two red blots, one left", "it's red: \xc3\xa9!"};
  const Tokenizer t = Tokenizer::train(texts, 530);
  write_open_clip_tokenizer(folder.path.string(), t, 12);
  const auto again = open_clip_tokenizer(folder.path.string());
  ASSERT_TRUE(again);
  for (const auto& text : texts) EXPECT_EQ(again->encode(text), t.encode(text));
  EXPECT_EQ(again->vocab_size(), t.vocab_size());
  json vocab = json::parse(read_text(folder.path / "vocab.json"));
  EXPECT_EQ(vocab.size(), std::size_t(t.vocab_size()));
  std::swap(vocab["a"], vocab["b"]);
  write_text(folder.path / "vocab.json", vocab.dump());
  EXPECT_THROW(open_clip_tokenizer(folder.path.string()), DataError);
}

}  // namespace
}  // namespace trireme::test

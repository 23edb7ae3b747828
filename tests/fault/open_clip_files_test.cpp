// A user's way: train, embed, export, load elsewhere, train on from a folder. Bad folders end in one line.
#include "framework/formats/safetensors.h"
#include "tests/fault/experiment.h"

#include <ATen/ATen.h>

namespace trireme::test {
namespace {

struct Kind {
  const char* name;
  const char* keys;
};
const Kind kinds[] = {{"vit", "patch_size: 8, vision_width: 32, vision_layers: 2, vision_heads: 2"},
                      {"resnet", "resnet_layers: [1, 1, 1, 1], vision_width: 4, vision_heads: 2"}};

at::Tensor tensor_of(const fs::path& file, const char* name) { return Safetensors(file.string()).tensor(name); }

double apart(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

class OpenClipFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
    for (int k = 0; k < 3; ++k) draw_pictures(here() / "pictures" / ("class " + std::to_string(k)), 1 + 30 * k, 30);
    ok({"data", "folder", "--from", "pictures", "--size", "32", "--out", "pairs.h5"});
    fs::create_directories(here() / "images");
    for (const int number : {3, 40, 77})  // squares of other sizes
      write_text(here() / "images" / (std::to_string(number) + ".png"), png(number, 20 + number));
    write_text(here() / "texts",
               "Picture number 12 in COLOR 5\n\npicture's of caf\xc3\xa9 &amp; 3d; a text that is cut short\n");
  }
  fs::path here() const { return folder_.path; }
  Outcome run(const Words& words) const { return run_program(words, {here()}); }
  void ok(const Words& words) const {
    const Outcome o = run(words);
    ASSERT_EQ(o.code, 0) << words[0] << ": " << o.err;
  }
  void bad(const Words& words, int code, const std::string& part) const {
    const Outcome o = run(words);
    EXPECT_EQ(o.code, code) << o.err;
    ASSERT_EQ(o.errors().size(), 1u) << o.err;
    EXPECT_NE(o.errors()[0].find(part), std::string::npos) << o.err;
  }
  void train(const Kind& kind, const std::string& out, const Words& more = {}) const {
    write_text(here() / "e.yaml",
               std::string("recipe: fastclip\nbatch_size: 16\nthreads: 1\nsteps: 4\nema: 0.5\n"
                           "data: {file: ./pairs.h5}\noptimizer: {lr: 1.0e-2}\n"
                           "model: {embed_dim: 16, image_size: 32, context: 12, vocab: 600, text_width: 32, "
                           "text_layers: 1, text_heads: 2, ") +
                   kind.keys + "}\n");
    Words words{"train", "e.yaml", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    ok(words);
  }
  void embed(const std::string& model, const std::string& out, const Words& more = {}) const {
    Words words{"embed", model, "--images", "images", "--texts", "texts", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    ok(words);
  }
  TempFolder folder_;
};

TEST_F(OpenClipFiles, RunAndItsFolderEmbedAlike) {
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const std::string run = std::string("run-") + kind.name, hub = std::string("hub-") + kind.name;
    train(kind, run);
    ok({"export", run, "--out", hub});
    embed(run, "run.st.safetensors");
    embed(hub, "hub.safetensors");
    for (const char* name : {"image_features", "text_features", "logit_scale"}) {
      EXPECT_EQ(apart(tensor_of(here() / "run.st.safetensors", name), tensor_of(here() / "hub.safetensors", name)), 0)
          << name;
    }
    // The running average is what evaluation saw; other weights on request.
    embed(run, "raw.safetensors", {"--raw"});
    EXPECT_GT(apart(tensor_of(here() / "raw.safetensors", "text_features"),
                    tensor_of(here() / "hub.safetensors", "text_features")),
              1e-6);
    // Trained on from the folder, with its tokenizer: step 0 has its weights, a locked tower keeps them.
    train(kind, "on-" + run, {"init_from=./" + hub, "model.lock_image=true", "ema=0"});
    embed("on-" + run, "on.safetensors");
    EXPECT_LE(apart(tensor_of(here() / "on.safetensors", "image_features"),
                    tensor_of(here() / "hub.safetensors", "image_features")),
              1e-6);
    EXPECT_GT(apart(tensor_of(here() / "on.safetensors", "text_features"),
                    tensor_of(here() / "hub.safetensors", "text_features")),
              1e-4);
  }
}

TEST_F(OpenClipFiles, OpenClipLoadsThemUnchanged) {
  const char* python = std::getenv("TRIREME_OPEN_CLIP_PYTHON");
  if (!python || !*python) GTEST_SKIP() << "TRIREME_OPEN_CLIP_PYTHON names no python with open_clip and transformers";
  const std::string script = std::string(std::getenv("TRIREME_SOURCE")) + "/tests/reference/open_clip_models.py";
  for (const Kind& kind : kinds) {
    const std::string run = std::string("run-") + kind.name, hub = std::string("hub-") + kind.name;
    train(kind, run);
    ok({"export", run, "--out", hub});
    embed(run, "ours.safetensors");
    const std::string command = "cd " + here().string() + " && " + python + " " + script + " exported " + hub +
                                " images texts theirs.safetensors 2> python.log";
    ASSERT_EQ(std::system(command.c_str()), 0) << read_text(here() / "python.log");
    for (const char* name : {"image_features", "text_features"}) {
      EXPECT_LE(apart(tensor_of(here() / "ours.safetensors", name), tensor_of(here() / "theirs.safetensors", name)),
                1e-5)
          << kind.name << " " << name;
    }
  }
}

TEST_F(OpenClipFiles, BadInputIsOneLine) {
  train(kinds[0], "run");
  ok({"export", "run", "--out", "hub"});
  const std::string config = read_text(here() / "hub/open_clip_config.json");
  const Words embed_texts{"embed", "hub", "--texts", "texts", "--out", "o.safetensors"};
  bad({"embed", "nowhere", "--texts", "texts", "--out", "o.safetensors"}, 3, "neither a run folder");
  bad({"embed", "run", "--out", "o.safetensors"}, 2, "nothing to embed");
  bad({"embed", "run", "--texts", "texts"}, 2, "--out");
  bad({"embed", "run", "--texts", "none", "--out", "o.safetensors"}, 3, "none");
  bad({"embed", "run", "--images", "run", "--out", "o.safetensors"}, 3, "no .png");
  bad({"embed", "run", "--texts", "texts", "--out", "o.safetensors", "--step", "3.5"}, 2, "3.5");
  bad({"embed", "run", "--texts", "texts", "--out", "o.safetensors", "--step", "3"}, 3, "step_00000003");
  bad({"export", "run", "--out", "o", "--format", "onnx"}, 2, "onnx");
  std::string wrong = config;
  wrong.replace(wrong.find("\"layers\""), 8, "\"layer\"");
  write_text(here() / "hub/open_clip_config.json", wrong);
  bad(embed_texts, 3, "did you mean layers");
  write_text(here() / "hub/open_clip_config.json", config.substr(0, config.size() / 2));
  bad(embed_texts, 3, "open_clip_config.json");
  write_text(here() / "hub/open_clip_config.json", config);
  fs::rename(here() / "hub/merges.txt", here() / "m.txt");
  fs::remove(here() / "hub/vocab.json");
  bad(embed_texts, 2, "--tokenizer FILE");
  bad({"train", "e.yaml", "--out", "q", "init_from=./hub", "model.quick_gelu=true"}, 2, "model.quick_gelu");
  bad({"train", "e.yaml", "--out", "q", "init_from=./hub", "data.tokenizer=./m.txt", "model.text_layers=2"}, 3,
      "resblocks.1");
  bad({"train", "e.yaml", "--out", "q", "model.lock_image_unlocked_groups=1"}, 2, "lock_image");
  bad({"train", "e.yaml", "--out", "q", "model.lock_text_unlocked_groups=1"}, 2, "lock_text");
  bad({"train", "e.yaml", "--out", "q", "model.lock_image=true", "freeze=[visual.*]"}, 2, "visual.*");
  bad({"export", "hub", "--out", "o", "--raw"}, 2, "--raw");
  bad({"export", "hub", "--out", "o", "--step", "best"}, 2, "--step");
}

// A token table under other numbers, or weights of another computation, load without a word: shapes are equal.
TEST_F(OpenClipFiles, WhatNoShapeTellsIsAskedFor) {
  train(kinds[0], "run");
  ok({"export", "run", "--out", "hub"});
  fs::copy_file(here() / "hub/merges.txt", here() / "m.txt");
  const auto from = [](const std::string& source, const Words& more) {
    Words words{"train", "e.yaml", "--out", "q", "--fresh", "init_from=./" + source};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  for (const std::string source : {"run", "hub"})
    for (const std::string key : {"quick_gelu=true", "vision_heads=4", "text_heads=4"})
      bad(from(source, {"model." + key}), 2, "model." + key.substr(0, key.find('=')));
  fs::remove(here() / "hub/merges.txt");
  for (const std::string source : {"hub", "hub/open_clip_model.safetensors"}) {
    bad(from(source, {}), 2, "data.tokenizer");
    ok(from(source, {"data.tokenizer=./m.txt"}));
  }
  bad(from("pictures", {}), 3, "is no run folder");
  // Captions of other words: a run brings its tokenizer.
  for (int i = 0; i < 40; ++i) {
    fs::create_directories(here() / "zebras");
    write_text(here() / "zebras" / (std::to_string(i) + ".png"), png(i));
    write_text(here() / "zebras" / (std::to_string(i) + ".txt"), "zebra quilt zebra quilt " + std::to_string(i));
  }
  ok({"data", "folder", "--from", "zebras", "--size", "32", "--out", "zebras.h5"});
  ok(from("run", {"data.file=./zebras.h5"}));
  ok({"export", "q", "--out", "q-hub"});
  EXPECT_EQ(read_text(here() / "q-hub/merges.txt"), read_text(here() / "m.txt"));
}

// The model that it started from was needed then only; another tokenizer is named.
TEST_F(OpenClipFiles, ARunGoesOnWithoutTheModelItStartedFrom) {
  train(kinds[0], "run");
  ok({"export", "run", "--out", "hub"});
  write_text(here() / "other.txt", "#version: 0.2\np i\n");
  auto config = nlohmann::json::parse(read_text(here() / "hub/open_clip_config.json"));
  config["preprocess_cfg"]["mean"] = {0.5, 0.4, 0.3};
  write_text(here() / "hub/open_clip_config.json", config.dump());
  const Words on{"train", "e.yaml", "--out", "on", "init_from=./hub", "checkpoint.every=2"};
  ok(on);
  const auto whole = final_state(here() / "on");
  const auto cut = [&] { fs::remove_all(here() / "on/ckpt/step_00000004"); };
  fs::remove_all(here() / "hub");
  cut();
  ok(on);
  EXPECT_EQ(final_state(here() / "on"), whole);
  cut();
  Words other = on;
  other.push_back("data.tokenizer=./other.txt");
  bad(other, 3, "is not the tokenizer this run was started with");
}

// What another model left in the folder would pass for ours, or ours for its.
TEST_F(OpenClipFiles, ExportLeavesNothingOfAnotherModel) {
  train(kinds[0], "run");
  ok({"export", "run", "--out", "hub"});
  write_text(here() / "hub/tokenizer.json", "{}");
  ok({"export", "run", "--out", "hub"});
  EXPECT_FALSE(fs::exists(here() / "hub/tokenizer.json"));
  EXPECT_TRUE(fs::exists(here() / "hub/vocab.json"));
  fs::copy(here() / "hub", here() / "bare");
  for (const char* file : {"vocab.json", "merges.txt"}) fs::remove(here() / "bare" / file);
  ok({"export", "bare", "--out", "hub"});
  for (const char* file : {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"})
    EXPECT_FALSE(fs::exists(here() / "hub" / file)) << file;
  embed("run", "run.safetensors");
  // It stops before the weights are there: no model, rather than a mixture.
  fs::remove(here() / "hub/open_clip_model.safetensors");
  fs::create_directories(here() / "hub/open_clip_model.safetensors/full");
  bad({"export", "run", "--out", "hub"}, 3, "open_clip_model.safetensors");
  EXPECT_FALSE(fs::exists(here() / "hub/open_clip_config.json"));
}

}  // namespace
}  // namespace trireme::test

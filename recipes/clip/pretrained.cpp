#include "recipes/clip/pretrained.h"

#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/io/checkpoint.h"
#include "framework/models/open_clip.h"

#include <filesystem>

namespace trireme::fastclip {
namespace {

// Weights that were made for another computation have equal shapes.
void check_same_computation(const nn::ClipConfig& model, const nn::ClipConfig& theirs, const std::string& source) {
  const auto same = [&](const char* key, auto ours, auto wanted, const std::string& shown) {
    if (ours != wanted)
      throw UsageError("model." + std::string(key), "is not as in init_from " + source, "set it to " + shown);
  };
  same("quick_gelu", model.quick_gelu, theirs.quick_gelu, theirs.quick_gelu ? "true" : "false");
  same("vision_heads", model.vision_heads, theirs.vision_heads, std::to_string(theirs.vision_heads));
  same("text_heads", model.text_heads, theirs.text_heads, std::to_string(theirs.text_heads));
}

// What `source` says of itself; nothing where it is no model, or none that can be asked.
struct Source {
  std::optional<OpenClipConfig> config;
  std::optional<Tokenizer> tokenizer;
};

Source run_of(const std::function<std::optional<std::string>(const std::string&)>& text, const std::string& place) {
  Source s;
  if (const auto config = text("recipe/open_clip_config")) s.config = parse_open_clip_config(*config, place);
  if (const auto merges = text("recipe/tokenizer")) s.tokenizer = Tokenizer::from_text(*merges, place);
  return s;
}

Source start_of(const DataConfig& data, const nn::ClipConfig& model, const std::string& path) {
  const std::string checkpoints = path + "/ckpt";
  const bool folder = is_open_clip_folder(path), run = !folder && std::filesystem::is_directory(checkpoints);
  Source s;
  if (folder) s.config = read_open_clip_config(path);
  if (folder && data.tokenizer.empty()) s.tokenizer = open_clip_tokenizer(path);
  if (run) s = run_of([&](const std::string& name) { return saved_text(checkpoints, name); }, path);
  if (s.config) check_same_computation(model, s.config->model, path);
  if (run && !s.config && model.quick_gelu)
    throw UsageError("model.quick_gelu", "is true, but the run in init_from " + path + " is older than that key",
                     "set it to false");
  const bool file = path.ends_with(".safetensors") && std::filesystem::exists(path);
  if ((folder || run || file) && !s.tokenizer && data.tokenizer.empty())  // init_from() refuses what is none of these
    throw UsageError("data.tokenizer", "is empty, and init_from " + path + " brings no tokenizer",
                     "data.tokenizer=FILE: the merges file its weights were trained with");
  return s;
}

}  // namespace

Inherited inherit(const DataConfig& data, const nn::ClipConfig& model,
                  const std::function<std::vector<std::string>()>& captions, Context& c) {
  Inherited result;
  agree(c.comm("control"), attempt([&] {
          Source s = run_of([&](const std::string& name) { return c.saved_text(name); }, "the checkpoint");
          // A run that goes on does not need what it started from, which may be gone.
          if (!s.tokenizer && !c.config().init_from.empty()) s = start_of(data, model, c.config().init_from);
          if (s.config) result.preprocess = s.config->preprocess;
          result.preprocess.size = model.image_size;
          auto& tokenizer = result.tokenizer;
          tokenizer = data.tokenizer.empty() ? std::move(s.tokenizer) : Tokenizer::load(data.tokenizer);
          if (!tokenizer) tokenizer = Tokenizer::train(captions(), model.vocab);
          if (tokenizer->vocab_size() > model.vocab)
            throw UsageError("model.vocab", "is " + std::to_string(model.vocab) + " but the tokenizer has " +
                                                std::to_string(tokenizer->vocab_size()) + " ids");
        }));
  return result;
}

}  // namespace trireme::fastclip

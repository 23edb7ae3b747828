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

// Of the model in `source`, which is checked; none where it brings none, or is nothing that weights could come from.
std::optional<Tokenizer> pretrained_tokenizer(const std::string& source, const nn::ClipConfig& model, bool wanted) {
  if (is_open_clip_folder(source)) {
    check_same_computation(model, read_open_clip_config(source).model, source);
    return wanted ? open_clip_tokenizer(source) : std::nullopt;
  }
  const std::string checkpoints = source + "/ckpt";
  if (!std::filesystem::is_directory(checkpoints)) return std::nullopt;
  if (const auto text = saved_text(checkpoints, "recipe/open_clip_config")) {
    check_same_computation(model, parse_open_clip_config(*text, source).model, source);
  } else if (model.quick_gelu) {
    throw UsageError("model.quick_gelu", "is true, but the run in init_from " + source + " is older than that key",
                     "set it to false");
  }
  const auto text = wanted ? saved_text(checkpoints, "recipe/tokenizer") : std::nullopt;
  return text ? std::optional(Tokenizer::from_text(*text, source)) : std::nullopt;
}

std::optional<Tokenizer> given_tokenizer(const DataConfig& data, const nn::ClipConfig& model, const Context& c) {
  const auto file = [&] {
    return data.tokenizer.empty() ? std::nullopt : std::optional(Tokenizer::load(data.tokenizer));
  };
  if (const auto saved = c.saved_text("recipe/tokenizer"))  // init_from was of the start, and may be gone
    return data.tokenizer.empty() ? Tokenizer::from_text(*saved, "the checkpoint's tokenizer") : file();
  const std::string& source = c.config().init_from;
  if (source.empty()) return file();
  auto tokenizer = pretrained_tokenizer(source, model, data.tokenizer.empty());
  if (!data.tokenizer.empty()) return file();
  const bool weights = is_open_clip_folder(source) || std::filesystem::is_directory(source + "/ckpt") ||
                       (source.ends_with(".safetensors") && std::filesystem::exists(source));
  if (!tokenizer && weights)  // init_from() says what is none
    throw UsageError("data.tokenizer", "is empty, and init_from " + source + " brings no tokenizer",
                     "data.tokenizer=FILE: the merges file its weights were trained with");
  return tokenizer;
}

}  // namespace

Tokenizer tokenizer_of(const DataConfig& data, const nn::ClipConfig& model,
                       const std::function<std::vector<std::string>()>& captions, Context& c) {
  std::optional<Tokenizer> tokenizer;
  agree(c.comm("control"), attempt([&] {
          tokenizer = given_tokenizer(data, model, c);
          if (!tokenizer) tokenizer = Tokenizer::train(captions(), model.vocab);
          if (tokenizer->vocab_size() > model.vocab)
            throw UsageError("model.vocab", "is " + std::to_string(model.vocab) + " but the tokenizer has " +
                                                std::to_string(tokenizer->vocab_size()) + " ids");
        }));
  return *tokenizer;
}

}  // namespace trireme::fastclip

// What a run takes over beside weights: the tokenizer, whose numbers a token table was trained under, and how pictures
// are seen.
#pragma once
#include "data/text/tokenizer.h"
#include "framework/context.h"
#include "framework/models/preprocess.h"
#include "recipes/clip/config.h"

#include <functional>
#include <optional>

namespace trireme::fastclip {

struct Inherited {
  std::optional<Tokenizer> tokenizer;  // always there
  Preprocess preprocess;
};

// Of the checkpoint that the run goes on from, else of the model in init_from; without one the tokenizer is learnt from
// `captions()`. data.tokenizer comes before all. A run that starts from a model is refused where that differs from
// `model` in what no shape tells (UsageError; a bare .safetensors cannot be asked), or where nothing says the
// tokenizer. Collective: all ranks throw what one of them meets.
Inherited inherit(const DataConfig& data, const nn::ClipConfig& model,
                  const std::function<std::vector<std::string>()>& captions, Context& c);

}  // namespace trireme::fastclip

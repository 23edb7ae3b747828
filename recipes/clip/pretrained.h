// What a run takes over beside weights: the tokenizer, whose numbers a token table was trained under.
#pragma once
#include "data/text/tokenizer.h"
#include "framework/context.h"
#include "recipes/clip/config.h"

#include <functional>

namespace trireme::fastclip {

// That of data.tokenizer; without it that of the checkpoint the run goes on from, else of the model in init_from, else
// one learnt from `captions()`. A run that starts from a model is refused where that differs from `model` in what no
// shape tells (UsageError; a bare .safetensors cannot be asked), or where nothing says the tokenizer. Collective: all
// ranks throw what one of them meets.
Tokenizer tokenizer_of(const DataConfig& data, const nn::ClipConfig& model,
                       const std::function<std::vector<std::string>()>& captions, Context& c);

}  // namespace trireme::fastclip

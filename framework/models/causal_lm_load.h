// A causal language model and its tokenizer from whatever holds them: a folder of Hugging Face, or a run of the recipe
// causal_lm.
#pragma once
#include "data/text/bpe.h"
#include "framework/models/causal_lm.h"

#include <optional>
#include <string>

namespace trireme {

// Which checkpoint of a run, and whether its running average.
struct LmCheckpoint {
  std::string step = "newest";
  bool average = true;
};

// No dtype: that of config.json, of a run f32. DataError: neither folder nor run, or what LmWeights::open() says. Of a
// folder nothing is read yet; of a run all, on the host.
LmWeights open_causal_lm(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype = {},
                         const LmCheckpoint& checkpoint = {});
// The same, whole.
CausalLm load_causal_lm(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype = {},
                        const LmCheckpoint& checkpoint = {});
BytePairTokenizer load_tokenizer(const std::string& path);

// A model of the shape that a config.json has, which `path` is or holds, of drawn_weight()s. DataError.
LmWeights draw_causal_lm(const std::string& path, std::uint64_t seed, at::Device device, at::ScalarType dtype);
// The tokenizer beside that config.json; where there is none, one of single bytes, in effect (260 ids).
BytePairTokenizer tokenizer_of_shape(const std::string& path);
// Weights of a model that is drawn.
double drawn_numbers(const std::string& path);

// Writes the model with the tokenizer that `from` (either kind) holds, if it holds one; transformers loads the folder.
// Files of at most `file_bytes`.
void write_hf_folder(const std::string& folder, const CausalLm& model, std::int64_t file_bytes,
                     const std::string& from);

}  // namespace trireme

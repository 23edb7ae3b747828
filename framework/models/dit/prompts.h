// From a prompt's text to what a small diffusion model is conditioned on: tokens of a closed vocabulary, looked up in a
// table that is trained with the model and lies beside it (prompts.safetensors; the vocabulary in trireme.json).
#pragma once
#include "data/scenes/range.h"
#include "framework/models/dit/denoiser.h"

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace trireme {

// Id 0 is padding; word i of the list has id i + 1. Every prompt has `tokens` ids: padding stays a key of attention.
class PromptVocabulary {
 public:
  // Sentences of data/scenes: one token for the ground and five an object ("color red", ...), of the words that the
  // model is trained on.
  static PromptVocabulary of_scenes(std::int64_t tokens, const SceneRange& range);
  // Words of captions, the most frequent `most` of them.
  static PromptVocabulary of_captions(const std::vector<std::string>& captions, std::int64_t tokens, std::size_t most);
  // As to_json() wrote it. DataError at `place`.
  static PromptVocabulary from_json(const nlohmann::json& json, const std::string& place);
  nlohmann::json to_json() const;

  std::int64_t tokens() const { return tokens_; }
  std::int64_t size() const { return std::int64_t(words_.size()) + 1; }
  // [tokens]. UsageError for what the vocabulary does not have, by name and with the nearest that it has; for a prompt
  // too long.
  std::vector<std::int64_t> ids(std::string_view prompt) const;
  // The same, leaving out words that are unknown or too many: captions that a model is trained on.
  std::vector<std::int64_t> known_ids(std::string_view caption) const;
  bool knows(std::string_view prompt) const;  // would ids() take it?

 private:
  PromptVocabulary(bool scenes, std::int64_t tokens, std::vector<std::string> words);
  std::vector<std::int64_t> ids(std::string_view prompt, bool strict) const;
  std::vector<std::string> words_of(std::string_view prompt, bool strict) const;

  bool scenes_ = true;
  std::int64_t tokens_ = 32;
  std::vector<std::string> words_;
  std::map<std::string, std::int64_t, std::less<>> numbers_;
};

// What the sampling engine knows of prompts. Not thread-safe.
class PromptEncoder {
 public:
  virtual ~PromptEncoder() = default;
  // UsageError: a prompt that the model does not know, by name.
  virtual Conditioning encode(const std::vector<std::string>& prompts) const = 0;
  // Of `count` pictures without a prompt, for guidance.
  virtual Conditioning none(std::int64_t count) const = 0;
};

// A table of embeddings and one of positions, of which a token's sum is its text embedding. The pooled text is zero:
// all that a prompt says goes through attention.
class PromptTable : public PromptEncoder {
 public:
  // Draws both tables through `source`, names "prompts.embedding" [size, width] and "prompts.position" [tokens, width].
  PromptTable(PromptVocabulary vocabulary, std::int64_t width, std::int64_t pooled_width, const DitWeights& source);
  Conditioning encode(const std::vector<std::string>& prompts) const override;
  Conditioning none(std::int64_t count) const override;
  // ids i64 [B, tokens] on the table's device. Differentiable.
  Conditioning encode_ids(const at::Tensor& ids) const;
  const PromptVocabulary& vocabulary() const { return vocabulary_; }
  // Writes prompts.safetensors; the vocabulary belongs into the config, at "trireme"/"prompts".
  void save(const std::string& folder) const;

 private:
  PromptVocabulary vocabulary_;
  at::Tensor embedding_, position_;
  std::int64_t pooled_width_;
};

// Of a model's folder. DataError: it has none, or one that does not fit `model`.
std::unique_ptr<PromptTable> prompts_from_folder(const std::string& folder, const Denoiser& model);

}  // namespace trireme

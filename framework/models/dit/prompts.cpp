#include "framework/models/dit/prompts.h"

#include "comm/error.h"
#include "comm/nearest.h"
#include "data/scenes/scene.h"
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"

#include <algorithm>
#include <cctype>
#include <numeric>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

constexpr std::int64_t most_tokens = 4096, most_words = 1000000;

// "color red": attribute and value.
std::string token(const char* attribute, const std::vector<std::string_view>& values, int value) {
  const auto word = values[std::size_t(value)];
  return std::string(attribute) + " " + (word.empty() ? "plain" : std::string(word));
}

std::vector<std::string> scene_tokens(const Scene& scene) {
  std::vector<std::string> all{token("ground", SceneWords::colors(), scene.ground)};
  for (const auto& o : scene.objects) {
    all.push_back(token("size", SceneWords::sizes(), o.size));
    all.push_back(token("color", SceneWords::colors(), o.color));
    all.push_back(token("texture", SceneWords::textures(), o.texture));
    all.push_back(token("shape", SceneWords::shapes(), o.shape));
    all.push_back(token("cell", SceneWords::cells(), o.cell));
  }
  return all;
}

// Lower-case runs of letters, digits and bytes above ASCII.
std::vector<std::string> plain_words(std::string_view text) {
  std::vector<std::string> all;
  bool inside = false;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool letter = byte >= 128 || std::isalnum(byte) != 0;
    if (letter && !inside) all.emplace_back();
    if (letter) all.back() += char(byte < 128 ? std::tolower(byte) : byte);
    inside = letter;
  }
  return all;
}

// All that sentences of scenes are made of, for naming what is unknown.
std::vector<std::string> sentence_words() {
  std::vector<std::string> all{"a", "an", "and", "on", "background"};
  for (const auto* list : {&SceneWords::shapes(), &SceneWords::colors(), &SceneWords::sizes(), &SceneWords::textures(),
                           &SceneWords::cells()})
    for (const auto phrase : *list)
      for (auto& word : plain_words(phrase)) all.push_back(std::move(word));
  return all;
}

UsageError unknown(std::string_view prompt, const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest(word, known);
  return UsageError("prompt \"" + std::string(prompt) + "\"", "the model does not know '" + word + "'",
                    near.empty() ? "use words that it was trained on" : "did you mean '" + near + "'?");
}

}  // namespace

PromptVocabulary::PromptVocabulary(bool scenes, std::int64_t tokens, std::vector<std::string> words)
    : scenes_(scenes), tokens_(tokens), words_(std::move(words)) {
  for (std::size_t i = 0; i < words_.size(); ++i) numbers_.emplace(words_[i], std::int64_t(i) + 1);
}

PromptVocabulary PromptVocabulary::of_scenes(std::int64_t tokens, const SceneRange& range) {
  std::vector<std::string> words;
  const auto add = [&](const char* attribute, const std::vector<std::string_view>& values,
                       const std::vector<int>& some) {
    for (const int i : some) words.push_back(token(attribute, values, i));
  };
  std::vector<int> cells(SceneWords::cells().size());
  std::iota(cells.begin(), cells.end(), 0);
  add("ground", SceneWords::colors(), range.colors), add("size", SceneWords::sizes(), range.sizes);
  add("color", SceneWords::colors(), range.colors), add("texture", SceneWords::textures(), range.textures);
  add("shape", SceneWords::shapes(), range.shapes), add("cell", SceneWords::cells(), cells);
  return {true, tokens, words};
}

PromptVocabulary PromptVocabulary::of_captions(const std::vector<std::string>& captions, std::int64_t tokens,
                                               std::size_t most) {
  std::map<std::string, std::int64_t> counts;
  for (const auto& caption : captions)
    for (const auto& word : plain_words(caption)) ++counts[word];
  std::vector<std::pair<std::int64_t, std::string>> order;
  for (const auto& [word, n] : counts) order.emplace_back(-n, word);
  std::sort(order.begin(), order.end());
  order.resize(std::min(order.size(), most));
  std::vector<std::string> words;
  for (auto& [n, word] : order) words.push_back(std::move(word));
  return {false, tokens, words};
}

PromptVocabulary PromptVocabulary::from_json(const nlohmann::json& json, const std::string& place) {
  const auto wrong = [&](const char* what) { return DataError(place, what, "export the model again"); };
  if (!json.is_object() || !json.contains("kind") || !json["kind"].is_string() || !json.contains("tokens") ||
      !json["tokens"].is_number_integer() || !json.contains("words") || !json["words"].is_array())
    throw wrong("describes no prompts (kind, tokens, words)");
  const std::string kind = json["kind"];
  const std::int64_t tokens = json["tokens"];
  if (kind != "scene" && kind != "words") throw wrong("its prompts are of a kind that is not known here");
  if (tokens < 1 || tokens > most_tokens || std::int64_t(json["words"].size()) > most_words)
    throw wrong("has prompts of an impossible size");
  std::vector<std::string> words;
  for (const auto& word : json["words"]) {
    if (!word.is_string()) throw wrong("has a word of its prompts that is no text");
    words.push_back(word);
  }
  return {kind == "scene", tokens, words};
}

nlohmann::json PromptVocabulary::to_json() const {
  return {{"kind", scenes_ ? "scene" : "words"}, {"tokens", tokens_}, {"words", words_}};
}

std::vector<std::string> PromptVocabulary::words_of(std::string_view prompt, bool strict) const {
  if (!scenes_) return plain_words(prompt);
  if (const auto scene = parse_scene(prompt)) return scene_tokens(*scene);
  if (!strict) return {};
  const auto known = sentence_words();
  for (const auto& word : plain_words(prompt))
    if (std::find(known.begin(), known.end(), word) == known.end()) throw unknown(prompt, word, known);
  throw UsageError("prompt \"" + std::string(prompt) + "\"", "is no scene that the model knows",
                   "write as in: a large red striped circle at the top left on a blue background");
}

std::vector<std::int64_t> PromptVocabulary::ids(std::string_view prompt, bool strict) const {
  std::vector<std::int64_t> ids;
  for (const auto& word : words_of(prompt, strict)) {
    const auto at = numbers_.find(word);
    if (at != numbers_.end())
      ids.push_back(at->second);
    else if (strict)
      throw unknown(prompt, word, words_);
  }
  if (std::ssize(ids) > tokens_ && strict)
    throw UsageError("prompt \"" + std::string(prompt) + "\"", "has " + std::to_string(ids.size()) + " tokens",
                     "the model takes " + std::to_string(tokens_));
  ids.resize(std::size_t(tokens_), 0);
  return ids;
}

std::vector<std::int64_t> PromptVocabulary::ids(std::string_view prompt) const { return ids(prompt, true); }
std::vector<std::int64_t> PromptVocabulary::known_ids(std::string_view caption) const { return ids(caption, false); }

bool PromptVocabulary::knows(std::string_view prompt) const {
  const auto words = words_of(prompt, false);
  return !words.empty() && std::ssize(words) <= tokens_ &&
         std::all_of(words.begin(), words.end(), [&](const auto& word) { return numbers_.contains(word); });
}

PromptTable::PromptTable(PromptVocabulary vocabulary, std::int64_t width, std::int64_t pooled_width,
                         const DitWeights& source)
    : vocabulary_(std::move(vocabulary)),
      embedding_(source({"prompts.embedding", {vocabulary_.size(), width}, DitWeight::matrix, 1})),
      position_(source({"prompts.position", {vocabulary_.tokens(), width}, DitWeight::matrix, 0.5})),
      pooled_width_(pooled_width) {}

Conditioning PromptTable::encode_ids(const at::Tensor& ids) const {
  Conditioning c;
  c.text = at::embedding(embedding_, ids) + position_;
  if (pooled_width_ > 0) c.pooled = at::zeros({ids.size(0), pooled_width_}, embedding_.options().requires_grad(false));
  return c;
}

Conditioning PromptTable::encode(const std::vector<std::string>& prompts) const {
  at::Tensor ids = at::empty({std::ssize(prompts), vocabulary_.tokens()}, at::kLong);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto row = vocabulary_.ids(prompts[i]);
    std::copy(row.begin(), row.end(), ids.mutable_data_ptr<std::int64_t>() + std::int64_t(i) * vocabulary_.tokens());
  }
  return encode_ids(to_device(ids, embedding_.device()));
}

Conditioning PromptTable::none(std::int64_t count) const {
  return encode_ids(at::zeros({count, vocabulary_.tokens()}, at::TensorOptions(embedding_.device()).dtype(at::kLong)));
}

void PromptTable::save(const std::string& folder) const {
  write_safetensors(
      folder + "/prompts.safetensors",
      std::vector<NamedTensor>{{"prompts.embedding", embedding_.detach()}, {"prompts.position", position_.detach()}},
      {{"format", "pt"}});
}

std::unique_ptr<PromptTable> prompts_from_folder(const std::string& folder, const Denoiser& model) {
  const auto& config = model.config();
  const std::string file = folder + "/prompts.safetensors", described = folder + "/trireme.json";
  if (!config.contains("trireme") || !config["trireme"].contains("prompts"))
    throw DataError(described, "describes no prompts", "give embeddings instead (embeds: FILE.safetensors)");
  auto vocabulary = PromptVocabulary::from_json(config["trireme"]["prompts"], described);
  const Safetensors tensors(file);
  const auto read = [&](const DitWeight& w) {
    at::Tensor t = tensors.tensor(w.name);
    if (t.sizes() != at::IntArrayRef(w.shape))
      throw DataError(file, w.name + " has shape " + c10::str(t.sizes()) + ", the model wants " + c10::str(w.shape));
    return t.to(model.device(), model.dtype());
  };
  return std::make_unique<PromptTable>(std::move(vocabulary), model.info().text_width, model.info().pooled_width, read);
}

}  // namespace trireme

// Learning a byte-level BPE, and the files that other programs load.
#include "comm/error.h"
#include "data/text/bpe_model.h"
#include "data/text/pair_counts.h"
#include "data/text/text.h"

#include <map>
#include <set>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr const char* marks[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
constexpr int first_byte = std::size(marks);

// A tokenizer.json without bytes and merges. `rules`: to split text into words and no more.
Json frame(bool rules) {
  Json file;
  file["version"] = "1.0";
  file["truncation"] = nullptr, file["padding"] = nullptr;
  file["added_tokens"] = Json::array();
  for (int i = 0; i < first_byte; ++i)
    file["added_tokens"].push_back({{"id", i},
                                    {"content", marks[i]},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  file["normalizer"] = nullptr;
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, bytes}}};
  file["post_processor"] = nullptr;
  file["decoder"] = bytes;
  Json& model = file["model"] = {{"type", "BPE"},
                                 {"dropout", nullptr},
                                 {"unk_token", nullptr},
                                 {"continuing_subword_prefix", nullptr},
                                 {"end_of_word_suffix", nullptr},
                                 {"fuse_unk", false},
                                 {"byte_fallback", false},
                                 {"ignore_merges", rules},
                                 {"vocab", Json::object()},
                                 {"merges", Json::array()}};
  for (int i = 0; i < first_byte; ++i) model["vocab"][marks[i]] = i;
  return file;
}

// ChatML, saying which part the assistant generates.
constexpr const char* chat =
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content ~ '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

Json config_of_marks() {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"bos_token", marks[0]},
          {"eos_token", marks[0]},
          {"pad_token", marks[0]},
          {"chat_template", chat},
          {"clean_up_tokenization_spaces", false},
          {"model_max_length", 1000000}};
}

}  // namespace

BytePairTokenizer BytePairTokenizer::train(std::span<const std::string> texts, std::int64_t vocab_size) {
  constexpr std::int64_t least = first_byte + 256, most = 1 << 20;
  if (vocab_size < least || vocab_size > most)
    throw UsageError("tokenizer", "vocabulary of " + std::to_string(vocab_size),
                     "choose " + std::to_string(least) + " to " + std::to_string(most));
  std::vector<std::string> tokens(marks, marks + first_byte);
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_alphabet().spell(std::string(1, char(b))));

  std::map<std::string, std::int64_t> words;  // in one order everywhere
  const auto rules = read_bpe(frame(true).dump(), "", "tokenizer");
  const PieceAction count_word = [&](std::string_view word, std::size_t, std::size_t) { ++words[std::string(word)]; };
  for (const std::string& text : texts)
    split_pieces(*rules, valid_utf8(text) ? text : encode_utf8(decode_utf8(text)), 0, count_word);
  PairCounts pairs;
  for (const auto& [word, count] : words) {
    std::vector<std::int32_t> ids;
    for (unsigned char b : word) ids.push_back(first_byte + b);
    pairs.add(std::move(ids), count);
  }
  Json file = frame(false);
  std::set<std::string> known(tokens.begin(), tokens.end());
  while (std::int64_t(tokens.size()) < vocab_size) {
    const auto pair = pairs.next();
    if (!pair) break;
    const auto& [a, b] = *pair;
    const std::string joined = tokens[a] + tokens[b];
    if (!known.insert(joined).second) {  // another split of a known token
      pairs.never(*pair);
      continue;
    }
    file["model"]["merges"].push_back({tokens[a], tokens[b]});
    pairs.join(*pair, std::int32_t(tokens.size()));
    tokens.push_back(joined);
  }
  for (std::size_t id = 0; id < tokens.size(); ++id) file["model"]["vocab"][tokens[id]] = id;
  return from_json(file.dump(), config_of_marks().dump(2), "tokenizer");
}

}  // namespace trireme

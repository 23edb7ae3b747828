// Byte-level BPE as Hugging Face's tokenizer.json describes it: the families of GPT-2, Qwen2 and Llama-3. Ids equal
// those of the Python package `tokenizers`.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// Where a token lies in the text it was made of: bytes [first, last).
struct TokenSpan {
  std::size_t first, last;
};

// Immutable after construction; any thread may encode and decode.
class BytePairTokenizer {
 public:
  struct Impl;
  // `path`: tokenizer.json, or the model folder that holds it. Marks (bos, eos, pad) come from tokenizer_config.json
  // beside it, if there is one. DataError naming the file: missing, cut, no byte-level BPE (the part that is not ours
  // is named), merges that make no token.
  static BytePairTokenizer read(const std::string& path);
  // From the texts of the two files, as checkpoints keep them; an empty config names no marks.
  static BytePairTokenizer from_json(std::string_view tokenizer, std::string_view config, const std::string& name);

  // Learns merges (Sennrich et al., ACL'16): the most frequent pair first, ties by the pair's ids; fewer ids where no
  // pair repeats. Ids: <|endoftext|> (bos, eos and pad), <|im_start|>, <|im_end|>, 256 bytes, merges. Words are split
  // as GPT-2 does, digits one by one. vocab_size >= 259.
  static BytePairTokenizer train(std::span<const std::string> texts, std::int64_t vocab_size);

  // tokenizer.json and tokenizer_config.json into `folder`, which must be there; other programs load them.
  void save(const std::string& folder) const;
  const std::string& name() const;    // where it came from, to begin an error
  const std::string& json() const;    // tokenizer.json
  const std::string& config() const;  // tokenizer_config.json; empty: there was none

  std::int64_t vocab_size() const;  // largest id + 1: a model's embedding has at least as many rows
  std::optional<std::int64_t> id(std::string_view token) const;  // of an added token, by its text
  std::optional<std::int64_t> bos() const;
  std::optional<std::int64_t> eos() const;
  std::optional<std::int64_t> pad() const;

  // What encode() sees of a text: valid UTF-8, in form C where the file says so.
  std::string normalized(std::string_view text) const;

  // `marks`: with what the post-processor adds (Llama-3: <|begin_of_text|>). Added tokens are found in the text.
  // Malformed UTF-8 becomes U+FFFD. `spans` (may be null): one for each id, in a text that is normalized() already;
  // marks have empty ones.
  std::vector<std::int64_t> encode(std::string_view text, bool marks = false,
                                   std::vector<TokenSpan>* spans = nullptr) const;
  // Bytes that are no UTF-8 become U+FFFD. Ids that no token has are left out: models have more rows than tokens.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special = false) const;

 private:
  explicit BytePairTokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace trireme

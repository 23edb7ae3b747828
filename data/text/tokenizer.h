// CLIP's byte-level BPE: text is repaired, unescaped, its white space collapsed and lower-cased, split into
// words, and each word's bytes are merged by rank. Reads OpenAI's merges file, or learns merges from
// captions.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Immutable after construction; a cache of words is shared and locked, so any thread may encode.
class Tokenizer {
 public:
  // bpe_simple_vocab_16e6.txt.gz as open_clip ships it (49408 ids: its first 48894 merges count, as in CLIP, and the
  // rest of it is not read), or a file written by save(), which counts whole; gzip by its magic number. Throws
  // DataError when it is missing or malformed.
  static Tokenizer load(const std::string& path);

  // At most vocab_size ids (>= 514: 256 bytes, each also as a word's end, and two marks); fewer when no pair
  // repeats. Deterministic: the most frequent pair first, ties by the pair's ids.
  static Tokenizer train(std::span<const std::string> captions, std::int64_t vocab_size);

  // As text; from_text(text()) encodes alike. Kept in checkpoints, so that a run needs no other file.
  std::string text() const;
  static Tokenizer from_text(std::string_view text, const std::string& name);
  void save(const std::string& path) const;

  std::vector<std::string> symbols() const;  // by id, as vocab.json of a CLIP tokenizer spells them; marks last

  std::int64_t vocab_size() const;
  std::int64_t sot() const { return vocab_size() - 2; }
  std::int64_t eot() const { return vocab_size() - 1; }
  std::int64_t pad() const { return 0; }

  std::vector<std::int64_t> encode(std::string_view text) const;  // without marks; malformed UTF-8 becomes U+FFFD
  std::string decode(std::span<const std::int64_t> ids) const;    // words end in a space; marks appear by name

  // i64 [b, context]: sot, ids, eot, then pad; a long text is cut and still ends in eot. `lengths` (may be
  // null): i64 [b], position of eot plus one. context >= 2.
  at::Tensor encode_batch(std::span<const std::string> texts, std::int64_t context,
                          at::Tensor* lengths = nullptr) const;

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

// What encode() sees after cleaning, as UTF-8.
std::string clean_text(std::string_view text);

}  // namespace trireme

// What tokenizer.json says, in the form that encoding uses: the inside of BytePairTokenizer.
#pragma once
#include "data/text/bpe.h"
#include "data/text/bpe_merges.h"
#include "data/text/pattern.h"

#include <functional>
#include <mutex>

namespace trireme {

struct AddedToken {
  std::string text;
  std::int32_t id = 0;
  bool special = false, lstrip = false, rstrip = false;
};

// Added tokens by their first byte, the longest first.
struct AddedTokens {
  std::array<std::vector<AddedToken>, 256> starting;
  bool any = false;
  void add(AddedToken token);
  const AddedToken* at(std::string_view text) const;  // the longest that `text` begins with; null: none
};

// A step of the pre-tokenizer: a space in front of what has none, or a split where matches and what lies between them
// are pieces.
struct PreTokenizerStep {
  bool prefix_space = false;
  std::shared_ptr<const Pattern> split;
};

// Words seen before, one slot a hash. Belongs to one thread at a time.
struct WordCache {
  struct Entry {
    std::string word;
    std::vector<BpeSymbol> symbols;
  };
  std::vector<Entry> entries = std::vector<Entry>(1 << 15);
};

struct BytePairTokenizer::Impl {
  std::string json, config;
  std::vector<std::string> bytes;            // by id: what it decodes to
  std::vector<std::uint8_t> known, special;  // by id
  std::array<std::int32_t, 256> byte_ids{};  // -1: the vocabulary lacks this byte
  std::int32_t unknown = -1;                 // stands for such a byte; -1: it is left out
  bool fuse_unknown = false, ignore_merges = false, nfc = false;
  MergeTable merges;
  std::unordered_map<std::string_view, std::int32_t> words;  // of the vocabulary, by their bytes
  std::unordered_map<std::string, std::int32_t> names;       // by the text in the file
  AddedTokens raw, normalized;                               // found before and after normalization
  std::vector<PreTokenizerStep> steps;
  std::vector<std::int32_t> before, after;  // of the post-processor
  std::optional<std::int32_t> bos, eos, pad;

  // Caches that no thread uses now.
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<WordCache>> caches;
};

// Calls `word` for each piece of the pre-tokenizer: its text, where it begins, and how many bytes at its beginning are
// not the user's.
using PieceAction = std::function<void(std::string_view text, std::size_t offset, std::size_t lead)>;
void split_pieces(const BytePairTokenizer::Impl& impl, std::string_view text, std::size_t offset,
                  const PieceAction& word);

// DataError naming `name`.
std::shared_ptr<const BytePairTokenizer::Impl> read_bpe(std::string_view tokenizer, std::string_view config,
                                                        const std::string& name);

}  // namespace trireme

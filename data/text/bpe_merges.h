// The merges of a byte-level BPE and how a word's bytes are merged by them.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace trireme {

// How a byte is written in vocabularies: printable characters as they are, the others from U+0100 on (GPT-2).
struct ByteAlphabet {
  std::array<char32_t, 256> character;
  std::unordered_map<char32_t, std::uint8_t> byte;

  std::string spell(std::string_view bytes) const;
  // False: a character of `spelled` stands for no byte; `bytes` is then of no use.
  bool read(std::string_view spelled, std::string& bytes) const;
};
const ByteAlphabet& byte_alphabet();

// Pair of ids to its rank and the id it becomes: open addressing, since most lookups find nothing.
class MergeTable {
 public:
  struct Merge {
    std::int32_t rank, joined;
  };
  void reserve(std::size_t merges);
  void add(std::int32_t a, std::int32_t b, Merge merge);  // of a pair that is there already the last counts
  const Merge* find(std::int32_t a, std::int32_t b) const;
  std::size_t size() const { return size_; }

 private:
  static constexpr std::uint64_t none = ~std::uint64_t(0);
  std::size_t slot(std::uint64_t key) const;
  std::vector<std::uint64_t> keys_;
  std::vector<Merge> merges_;
  std::size_t size_ = 0;
};

// One symbol of a word with the bytes it covers.
struct BpeSymbol {
  std::int32_t id;
  std::uint32_t bytes;
};

// Merges the pair of lowest rank, leftmost first, until none is left: n log n for a word of n symbols.
void merge_symbols(std::vector<BpeSymbol>& symbols, const MergeTable& merges);

}  // namespace trireme

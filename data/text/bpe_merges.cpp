#include "data/text/bpe_merges.h"

#include "data/text/text.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace trireme {

std::string ByteAlphabet::spell(std::string_view bytes) const {
  std::string out;
  for (unsigned char b : bytes) append_utf8(out, character[b]);
  return out;
}

bool ByteAlphabet::read(std::string_view spelled, std::string& bytes) const {
  bytes.clear();
  for (char32_t c : decode_utf8(spelled)) {
    const auto it = byte.find(c);
    if (it == byte.end()) return false;
    bytes += char(it->second);
  }
  return true;
}

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet a;
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool plain = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      a.character[b] = plain ? char32_t(b) : next++;
      a.byte[a.character[b]] = std::uint8_t(b);
    }
    return a;
  }();
  return alphabet;
}

namespace {
std::uint64_t pair_key(std::int32_t a, std::int32_t b) {
  return (std::uint64_t(std::uint32_t(a)) << 32) | std::uint32_t(b);
}
}  // namespace

void MergeTable::reserve(std::size_t merges) {
  std::size_t slots = 16;
  while (slots < 2 * merges + 2) slots *= 2;
  keys_.assign(slots, none);
  merges_.assign(slots, {});
}

std::size_t MergeTable::slot(std::uint64_t key) const {
  std::uint64_t h = key * 0x9E3779B97F4A7C15ull;
  h ^= h >> 32;
  std::size_t i = h & (keys_.size() - 1);
  while (keys_[i] != none && keys_[i] != key) i = (i + 1) & (keys_.size() - 1);
  return i;
}

void MergeTable::add(std::int32_t a, std::int32_t b, Merge merge) {
  const std::uint64_t key = pair_key(a, b);
  const std::size_t i = slot(key);
  size_ += keys_[i] != key;
  keys_[i] = key;
  merges_[i] = merge;
}

const MergeTable::Merge* MergeTable::find(std::int32_t a, std::int32_t b) const {
  if (size_ == 0) return nullptr;
  const std::uint64_t key = pair_key(a, b);
  const std::size_t i = slot(key);
  return keys_[i] == key ? &merges_[i] : nullptr;
}

void merge_symbols(std::vector<BpeSymbol>& symbols, const MergeTable& merges) {
  const int n = int(symbols.size());
  std::vector<int> next(n), previous(n);
  for (int i = 0; i < n; ++i) next[i] = i + 1, previous[i] = i - 1;
  struct Candidate {
    std::int32_t rank;
    int at;
    std::int32_t a, b, joined;
    bool operator>(const Candidate& o) const { return std::tie(rank, at) > std::tie(o.rank, o.at); }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto offer = [&](int i) {
    if (i < 0 || next[i] >= n) return;
    const std::int32_t a = symbols[i].id, b = symbols[next[i]].id;
    if (const auto* m = merges.find(a, b)) heap.push({m->rank, i, a, b, m->joined});
  };
  for (int i = 0; i < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate c = heap.top();
    heap.pop();
    const int i = c.at;
    if (symbols[i].id != c.a || next[i] >= n || symbols[next[i]].id != c.b) continue;  // merged away meanwhile
    const int gone = next[i];
    symbols[i] = {c.joined, symbols[i].bytes + symbols[gone].bytes};
    symbols[gone].id = -1;
    next[i] = next[gone];
    if (next[i] < n) previous[next[i]] = i;
    offer(previous[i]);
    offer(i);
  }
  std::erase_if(symbols, [](const BpeSymbol& s) { return s.id < 0; });
}

}  // namespace trireme

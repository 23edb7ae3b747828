#include "data/text/tokenizer.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/gzip.h"
#include "data/text/bpe_merges.h"
#include "data/text/pair_counts.h"
#include "data/text/text.h"
#include "data/text/unicode.h"
#include "data/text/words.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>
#include <queue>
#include <set>
#include <shared_mutex>
#include <tuple>
#include <unordered_map>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace trireme {
namespace {

constexpr std::int64_t bytes = 256, marks = 2, clip_merges = 49152 - 256 - 2;
constexpr std::int64_t max_file = 1 << 26;
constexpr std::string_view end_of_word = "</w>", header = "#version: trireme byte-level bpe 1";
constexpr std::string_view mark_names[] = {"<start_of_text>", "<end_of_text>"};
constexpr std::size_t max_cached_words = 1 << 20;

// Bytes as printable characters, in whose order ids follow: order[id] is the byte.
struct Alphabet {
  std::array<std::uint8_t, 256> order;
  std::array<std::int32_t, 256> id;
  std::array<std::string, 256> symbol;  // by byte
  std::map<std::string, std::uint8_t, std::less<>> byte;

  Alphabet() {
    const auto& characters = byte_alphabet().character;
    std::iota(order.begin(), order.end(), std::uint8_t(0));
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return characters[a] < characters[b]; });
    for (int i = 0; i < 256; ++i) {
      const std::uint8_t b = order[i];
      id[b] = i;
      append_utf8(symbol[b], characters[b]);
      byte[symbol[b]] = b;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet a;
  return a;
}

using Id = std::int32_t;
using Ids = std::vector<Id>;

std::uint64_t pair_key(Id a, Id b) { return std::uint64_t(std::uint32_t(a)) << 32 | std::uint32_t(b); }

Ids word_bytes(std::string_view word) {
  Ids ids;
  for (unsigned char b : word) ids.push_back(alphabet().id[b]);
  ids.back() += bytes;  // the end of a word is another symbol
  return ids;
}

}  // namespace

struct Tokenizer::Impl {
  std::vector<std::pair<Id, Id>> merges;
  std::unordered_map<std::uint64_t, Id> rank;  // pair -> index in merges
  mutable std::shared_mutex mutex;
  mutable std::unordered_map<std::string, Ids> cache;

  void add(Id a, Id b) {
    rank.emplace(pair_key(a, b), Id(merges.size()));
    merges.emplace_back(a, b);
  }

  Ids bpe(std::string_view word) const {
    for (int m = 0; m < marks; ++m)
      if (word == mark_names[m]) return {Id(2 * bytes + std::int64_t(merges.size()) + m)};
    Ids ids = word_bytes(word);
    // A heap of candidate pairs by (rank, position) and a list of live symbols: a long word stays n log n.
    const int n = int(ids.size());
    std::vector<int> next(n), previous(n);
    for (int i = 0; i < n; ++i) next[i] = i + 1, previous[i] = i - 1;
    using Candidate = std::tuple<Id, int, Id, Id>;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
    auto offer = [&](int i) {
      if (i < 0 || next[i] >= n) return;
      const auto it = rank.find(pair_key(ids[i], ids[next[i]]));
      if (it != rank.end()) heap.emplace(it->second, i, ids[i], ids[next[i]]);
    };
    for (int i = 0; i < n; ++i) offer(i);
    while (!heap.empty()) {
      const auto [r, i, a, b] = heap.top();
      heap.pop();
      if (ids[i] != a || next[i] >= n || ids[next[i]] != b) continue;  // merged away meanwhile
      const int gone = next[i];
      ids[i] = Id(2 * bytes) + r;
      ids[gone] = -1;
      next[i] = next[gone];
      if (next[i] < n) previous[next[i]] = i;
      offer(previous[i]);
      offer(i);
    }
    std::erase(ids, -1);
    return ids;
  }

  void append(std::vector<std::int64_t>& out, std::string_view word) const {
    const std::string key(word);
    {
      std::shared_lock lock(mutex);
      if (const auto it = cache.find(key); it != cache.end()) {
        out.insert(out.end(), it->second.begin(), it->second.end());
        return;
      }
    }
    const Ids ids = bpe(word);
    out.insert(out.end(), ids.begin(), ids.end());
    std::unique_lock lock(mutex);
    if (cache.size() < max_cached_words && key.size() < 64) cache.emplace(key, ids);
  }

  // The symbol's bytes, and whether it ends a word.
  std::string spell(Id id, bool& ends) const {
    if (id < 2 * bytes) {
      ends = id >= bytes;
      return std::string(1, char(alphabet().order[id % bytes]));
    }
    bool inner = false;
    const auto [a, b] = merges[id - 2 * bytes];
    std::string left = spell(a, inner);
    return left + spell(b, ends);
  }

  std::string symbol(Id id) const {
    bool ends = false;
    std::string out;
    for (unsigned char b : spell(id, ends)) out += alphabet().symbol[b];
    if (ends) out += end_of_word;
    return out;
  }
};

std::string clean_text(std::string_view text) {
  const std::string plain = html_unescape(html_unescape(encode_utf8(repair_text(decode_utf8(text)))));
  std::u32string out;
  bool gap = false;
  for (char32_t c : decode_utf8(plain)) {
    if (is_space(c)) {
      gap = !out.empty();
    } else {
      if (gap) out += U' ';
      gap = false;
      out += c;
    }
  }
  return encode_utf8(lower(out));
}

Tokenizer Tokenizer::from_text(std::string_view text, const std::string& name) {
  auto wrong = [&](std::int64_t line, const std::string& what) {
    return DataError(name + ":" + std::to_string(line), what, "use a merges file of CLIP's form, or train a tokenizer");
  };
  auto impl = std::make_shared<Impl>();
  std::unordered_map<std::string, Id> symbols;
  for (Id i = 0; i < 2 * bytes; ++i) symbols[impl->symbol(i)] = i;
  std::int64_t line = 0;
  const bool ours = text.starts_with(header);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view row = text.substr(at, end - at);
    at = end + 1;
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (++line == 1) {
      if (row.find("#version") == row.npos) throw wrong(1, "is no BPE merges file: its first line names no #version");
      continue;
    }
    if (row.empty()) continue;
    if (std::int64_t(impl->merges.size()) == clip_merges) {
      if (ours) throw wrong(line, "more merges than the " + std::to_string(clip_merges) + " of a vocabulary");
      break;  // OpenAI's file goes on; CLIP's ids end here
    }
    const auto space = row.find(' ');
    if (space == row.npos || row.find(' ', space + 1) != row.npos) throw wrong(line, "expected two symbols");
    const auto a = symbols.find(std::string(row.substr(0, space))),
               b = symbols.find(std::string(row.substr(space + 1)));
    if (a == symbols.end() || b == symbols.end()) throw wrong(line, "a symbol is not made by the lines before");
    if (bool ends = false; impl->spell(a->second, ends), ends)
      throw wrong(line, "the first symbol of a pair cannot end a word");
    if (impl->rank.contains(pair_key(a->second, b->second))) throw wrong(line, "the pair appears twice");
    const Id joined = Id(2 * bytes) + Id(impl->merges.size());
    impl->add(a->second, b->second);
    if (!symbols.emplace(impl->symbol(joined), joined).second) throw wrong(line, "the joined symbol appears twice");
  }
  if (line == 0) throw wrong(1, "empty file");
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::load(const std::string& path) {
  const auto raw = read_file(path, max_file);
  const bool zipped = raw.size() > 2 && raw[0] == 0x1f && raw[1] == 0x8b;
  return from_text(zipped ? gunzip(raw, path, max_file) : std::string(raw.begin(), raw.end()), path);
}

std::string Tokenizer::text() const {
  std::string out(header);
  out += '\n';
  for (const auto& [a, b] : impl_->merges) out += impl_->symbol(a) + " " + impl_->symbol(b) + "\n";
  return out;
}

void Tokenizer::save(const std::string& path) const {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text();
  file.close();
  if (!file) throw DataError(path, "cannot be written", "check the folder and the free space");
}

Tokenizer Tokenizer::train(std::span<const std::string> captions, std::int64_t vocab_size) {
  const std::int64_t base = 2 * bytes + marks;
  if (vocab_size < base || vocab_size > base + clip_merges)
    throw UsageError("tokenizer", "vocabulary of " + std::to_string(vocab_size),
                     "choose " + std::to_string(base) + " to " + std::to_string(base + clip_merges));
  std::map<std::string, std::int64_t> counts;
  for (const auto& caption : captions)
    split_words(clean_text(caption), [&](std::string_view w) {
      if (w != mark_names[0] && w != mark_names[1]) ++counts[std::string(w)];
    });

  PairCounts pairs;
  for (const auto& [word, count] : counts) pairs.add(word_bytes(word), count);
  auto impl = std::make_shared<Impl>();
  std::set<std::string> symbols;
  while (base + std::int64_t(impl->merges.size()) < vocab_size) {
    const auto next = pairs.next();
    if (!next) break;
    const auto pair = *next;
    const Id joined = Id(2 * bytes) + Id(impl->merges.size());
    impl->add(pair.first, pair.second);
    // Another split of a known symbol, or text that would read as a word's end in the file: skip this pair.
    bool ends = false;
    impl->spell(joined, ends);
    const std::string symbol = impl->symbol(joined);
    if ((!ends && symbol.ends_with(end_of_word)) || !symbols.insert(symbol).second) {
      impl->merges.pop_back();
      impl->rank.erase(pair_key(pair.first, pair.second));
      pairs.never(pair);
    } else {
      pairs.join(pair, joined);
    }
  }
  return Tokenizer(std::move(impl));
}

std::vector<std::string> Tokenizer::symbols() const {
  std::vector<std::string> all;
  for (Id i = 0; i < Id(vocab_size() - marks); ++i) all.push_back(impl_->symbol(i));
  all.insert(all.end(), std::begin(mark_names), std::end(mark_names));
  return all;
}

std::int64_t Tokenizer::vocab_size() const { return 2 * bytes + std::int64_t(impl_->merges.size()) + marks; }

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int64_t> ids;
  split_words(clean_text(text), [&](std::string_view word) { impl_->append(ids, word); });
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids) const {
  std::string out;
  for (auto id : ids) {
    if (id < 0 || id >= vocab_size())
      throw DataError("tokenizer",
                      "id " + std::to_string(id) + " is outside a vocabulary of " + std::to_string(vocab_size()));
    if (id >= sot()) {
      out += mark_names[id - sot()];
      continue;
    }
    bool ends = false;
    out += impl_->spell(Id(id), ends);
    if (ends) out += ' ';
  }
  return encode_utf8(decode_utf8(out));
}

at::Tensor Tokenizer::encode_batch(std::span<const std::string> texts, std::int64_t context,
                                   at::Tensor* lengths) const {
  if (context < 2) throw UsageError("tokenizer", "context of " + std::to_string(context), "make it at least 2");
  const auto b = std::int64_t(texts.size());
  at::Tensor out = at::zeros({b, context}, at::kLong), length = at::empty({b}, at::kLong);
  auto* rows = static_cast<std::int64_t*>(out.mutable_data_ptr());
  auto* ends = static_cast<std::int64_t*>(length.mutable_data_ptr());
  for (std::int64_t i = 0; i < b; ++i) {
    const auto ids = encode(texts[i]);
    const auto keep = std::min<std::int64_t>(std::int64_t(ids.size()), context - 2);
    std::int64_t* row = rows + i * context;
    row[0] = sot();
    std::copy_n(ids.begin(), keep, row + 1);
    row[keep + 1] = eot();
    ends[i] = keep + 2;
  }
  if (lengths) *lengths = length;
  return out;
}

}  // namespace trireme

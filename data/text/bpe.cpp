#include "data/text/bpe.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "data/text/bpe_model.h"
#include "data/text/text.h"
#include "data/text/unicode.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

constexpr std::int64_t max_file = std::int64_t(1) << 28;

using Impl = BytePairTokenizer::Impl;

bool white(char32_t c) { return is_space(c) && !(c >= 0x1C && c <= 0x1F); }

std::size_t length_of(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

// Bytes of white space at the end and at the beginning.
std::size_t space_at_end(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!white(decode_utf8(text.substr(at, end - at))[0])) break;
    end = at;
  }
  return text.size() - end;
}
std::size_t space_at_start(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t n = length_of(static_cast<unsigned char>(text[at]));
    if (!white(decode_utf8(text.substr(at, n))[0])) break;
    at += n;
  }
  return at;
}

// No character from U+0300 on: such a text is in form C.
bool surely_composed(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
}

// Calls `found` with each added token and where it lies, and `between` with what lies between them and where.
template <class Found, class Between>
void split_at_tokens(const AddedTokens& added, std::string_view text, Found found, Between between) {
  std::size_t from = 0;
  for (std::size_t at = 0; added.any && at < text.size();) {
    const AddedToken* token = added.at(text.substr(at));
    if (!token) {
      ++at;
      continue;
    }
    std::size_t first = at, last = at + token->text.size();
    at = last;
    if (token->lstrip) first = std::max(from, first - space_at_end(text.substr(0, first)));
    if (token->rstrip) last += space_at_start(text.substr(last));
    if (from < first) between(text.substr(from, first - from), from);
    found(*token, first, last);
    from = last;
  }
  if (from < text.size()) between(text.substr(from), from);
}

// What the steps make of `text`, whose first `lead` bytes are not the user's.
void split_from(std::span<const PreTokenizerStep> steps, std::string_view text, std::size_t offset, std::size_t lead,
                const PieceAction& word) {
  if (text.empty()) return;
  if (steps.empty()) return word(text, offset, lead);
  const PreTokenizerStep& s = steps[0];
  const auto later = steps.subspan(1);
  if (s.prefix_space) {
    if (text[0] == ' ') return split_from(later, text, offset, lead, word);
    return split_from(later, " " + std::string(text), offset, lead + 1, word);
  }
  const auto part = [&](std::size_t first, std::size_t last) {
    const std::size_t kept = std::min(lead, first);  // bytes before this part that are not the user's
    split_from(later, text.substr(first, last - first), offset + first - kept, lead - kept, word);
  };
  std::size_t from = 0, search = 0;
  while (search < text.size()) {
    const auto [first, last] = s.split->find(text, search);
    if (first == text.npos) break;
    if (last == first) {  // an empty match splits nothing
      search = first + length_of(static_cast<unsigned char>(text[std::min(first, text.size() - 1)]));
      continue;
    }
    if (from < first) part(from, first);
    part(first, last);
    from = search = last;
  }
  if (from < text.size()) part(from, text.size());
}

// One call of encode(): its text, ids so far, and a cache for itself.
class Encoder {
 public:
  Encoder(const Impl& impl, std::vector<std::int64_t>& ids, std::vector<TokenSpan>* spans)
      : impl_(impl), ids_(ids), spans_(spans) {
    std::lock_guard lock(impl.mutex);
    if (!impl.caches.empty()) cache_ = std::move(impl.caches.back()), impl.caches.pop_back();
    if (!cache_) cache_ = std::make_unique<WordCache>();
  }
  ~Encoder() {
    std::lock_guard lock(impl_.mutex);
    impl_.caches.push_back(std::move(cache_));
  }

  void mark(std::int32_t id, std::size_t at) { put(id, at, at); }

  template <class F>
  void tokens(const AddedTokens& added, std::string_view text, std::size_t offset, F between) {
    split_at_tokens(
        added, text,
        [&](const AddedToken& token, std::size_t first, std::size_t last) {
          put(token.id, offset + first, offset + last);
        },
        [&](std::string_view part, std::size_t at) { between(part, offset + at); });
  }

  void rest(std::string_view text, std::size_t offset) { split_pieces(impl_, text, offset, word_); }

 private:
  void put(std::int32_t id, std::size_t first, std::size_t last) {
    ids_.push_back(id);
    if (spans_) spans_->push_back({first, last});
  }

  void word(std::string_view text, std::size_t offset, std::size_t lead) {
    WordCache::Entry& entry = cache_->entries[std::hash<std::string_view>()(text) & (cache_->entries.size() - 1)];
    if (entry.word == text) return put(entry.symbols, offset, lead);
    std::vector<BpeSymbol> symbols;
    const auto whole = impl_.ignore_merges ? impl_.words.find(text) : impl_.words.end();
    if (whole != impl_.words.end()) {
      symbols.push_back({whole->second, std::uint32_t(text.size())});
    } else {
      symbols = split(text);
      merge_symbols(symbols, impl_.merges);
    }
    put(symbols, offset, lead);
    if (text.size() < 64) entry = {std::string(text), std::move(symbols)};
  }

  std::vector<BpeSymbol> split(std::string_view text) const {
    std::vector<BpeSymbol> symbols;
    symbols.reserve(text.size());
    bool unknown_before = false;
    std::uint32_t left_out = 0;  // bytes before the first symbol
    for (unsigned char b : text) {
      const bool unknown = impl_.byte_ids[b] < 0;
      const std::int32_t id = unknown ? impl_.unknown : impl_.byte_ids[b];
      if (id >= 0 && !(unknown && unknown_before && impl_.fuse_unknown))
        symbols.push_back({id, 1 + (symbols.empty() ? left_out : 0)});
      else
        ++(symbols.empty() ? left_out : symbols.back().bytes);
      unknown_before = unknown;
    }
    return symbols;
  }

  void put(const std::vector<BpeSymbol>& symbols, std::size_t offset, std::size_t lead) {
    std::size_t at = 0;
    for (const BpeSymbol& s : symbols) {
      const std::size_t first = at, last = at + s.bytes;
      put(s.id, offset + first - std::min(lead, first), offset + last - std::min(lead, last));
      at = last;
    }
  }

  const Impl& impl_;
  const PieceAction word_ = [this](std::string_view text, std::size_t offset, std::size_t lead) {
    word(text, offset, lead);
  };
  std::vector<std::int64_t>& ids_;
  std::vector<TokenSpan>* spans_;
  std::unique_ptr<WordCache> cache_;
};

// Bytes that are no UTF-8 become U+FFFD: one for each longest beginning of a character, as Unicode recommends.
std::string lossy(std::string_view bytes) {
  if (valid_utf8(bytes)) return std::string(bytes);
  std::string out;
  for (std::size_t i = 0; i < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[i]);
    const std::size_t n = lead < 0xC2 || lead > 0xF4 ? 1 : length_of(lead);
    std::size_t have = 1;
    for (unsigned char low = lead == 0xE0   ? 0xA0
                             : lead == 0xF0 ? 0x90
                                            : 0x80,
                       high = lead == 0xED   ? 0x9F
                              : lead == 0xF4 ? 0x8F
                                             : 0xBF;
         have < n && i + have < bytes.size(); ++have, low = 0x80, high = 0xBF)
      if (const auto b = static_cast<unsigned char>(bytes[i + have]); b < low || b > high) break;
    if (have == n && (n > 1 || lead < 0x80))
      out += bytes.substr(i, n);
    else
      append_utf8(out, 0xFFFD);
    i += have;
  }
  return out;
}

std::string text_of(const std::filesystem::path& path) {
  const auto bytes = read_file(path.string(), max_file);
  return std::string(bytes.begin(), bytes.end());
}

// A model whose end mark is its class's in transformers, where the tokenizer's files name none: published GPT-2.
bool marked_by_class(const std::filesystem::path& config) {
  std::error_code error;
  if (!std::filesystem::exists(config, error)) return false;
  const auto root = parse_json(text_of(config));
  if (!root.is_object() || !root.contains("model_type")) return false;
  return root["model_type"] == "gpt2" || root["model_type"] == "qwen2" || root["model_type"] == "qwen3";
}

}  // namespace

void split_pieces(const Impl& impl, std::string_view text, std::size_t offset, const PieceAction& word) {
  split_from(impl.steps, text, offset, 0, word);
}

void AddedTokens::add(AddedToken token) {
  any = true;
  auto& list = starting[static_cast<unsigned char>(token.text[0])];
  list.push_back(std::move(token));
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a.text.size() > b.text.size(); });
}

const AddedToken* AddedTokens::at(std::string_view text) const {
  for (const AddedToken& token : starting[static_cast<unsigned char>(text[0])])
    if (text.starts_with(token.text)) return &token;
  return nullptr;
}

BytePairTokenizer BytePairTokenizer::from_json(std::string_view tokenizer, std::string_view config,
                                               const std::string& name) {
  return BytePairTokenizer(read_bpe(tokenizer, config, name));
}

BytePairTokenizer BytePairTokenizer::read(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path file = fs::is_directory(path, error) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  if (!fs::exists(file, error))
    throw DataError(
        file.string(), "no such file",
        "name a folder with tokenizer.json; transformers writes one with save_pretrained of a fast tokenizer");
  const fs::path config = file.parent_path() / "tokenizer_config.json";
  std::string said = fs::exists(config, error) ? text_of(config) : "";
  auto root = said.empty() ? nlohmann::json::object() : parse_json(said);
  if (!root.is_object()) return from_json(text_of(file), said, file.string());  // which refuses it
  if (const fs::path jinja = file.parent_path() / "chat_template.jinja"; fs::exists(jinja, error)) {
    root["chat_template"] = utf8_or_latin1(text_of(jinja));
    said = root.dump(2);
  }
  if (!root.contains("eos_token") && marked_by_class(file.parent_path() / "config.json")) {
    root["eos_token"] = "<|endoftext|>";
    said = root.dump(2);
  }
  return from_json(text_of(file), said, file.string());
}

void BytePairTokenizer::save(const std::string& folder) const {
  const auto write = [&](const std::string& name, const std::string& text) {
    write_whole(folder + "/" + name, [&](const std::string& path) {
      std::ofstream out(path, std::ios::binary);
      out << text;
      out.close();
      if (!out) throw DataError(folder + "/" + name, "cannot be written", "check the folder and the free space");
    });
  };
  write("tokenizer.json", impl_->json);
  if (!impl_->config.empty()) write("tokenizer_config.json", impl_->config);
}

const std::string& BytePairTokenizer::name() const { return impl_->name; }
const std::string& BytePairTokenizer::json() const { return impl_->json; }
const std::string& BytePairTokenizer::config() const { return impl_->config; }
std::int64_t BytePairTokenizer::vocab_size() const { return std::int64_t(impl_->bytes.size()); }
std::optional<std::int64_t> BytePairTokenizer::bos() const { return impl_->bos; }
std::optional<std::int64_t> BytePairTokenizer::eos() const { return impl_->eos; }
std::optional<std::int64_t> BytePairTokenizer::pad() const { return impl_->pad; }

std::optional<std::int64_t> BytePairTokenizer::id(std::string_view token) const {
  const auto it = impl_->names.find(std::string(token));
  return it == impl_->names.end() ? std::nullopt : std::optional<std::int64_t>(it->second);
}

std::string BytePairTokenizer::normalized(std::string_view text) const {
  const std::string valid = valid_utf8(text) ? std::string(text) : encode_utf8(decode_utf8(text));
  if (!impl_->nfc || surely_composed(valid)) return valid;
  std::string out;
  const std::string_view all = valid;
  split_at_tokens(
      impl_->raw, all,
      [&](const AddedToken&, std::size_t first, std::size_t last) { out += all.substr(first, last - first); },
      [&](std::string_view part, std::size_t) { out += encode_utf8(nfc(decode_utf8(part))); });
  return out;
}

std::vector<std::int64_t> BytePairTokenizer::encode(std::string_view text, bool marks,
                                                    std::vector<TokenSpan>* spans) const {
  std::vector<std::int64_t> ids;
  if (spans) spans->clear();
  std::string repaired;
  if (!valid_utf8(text)) text = repaired = encode_utf8(decode_utf8(text));
  Encoder encoder(*impl_, ids, spans);
  if (marks)
    for (auto id : impl_->before) encoder.mark(id, 0);
  encoder.tokens(impl_->raw, text, 0, [&](std::string_view part, std::size_t offset) {
    std::string composed;
    if (impl_->nfc && !surely_composed(part)) part = composed = encode_utf8(nfc(decode_utf8(part)));
    encoder.tokens(impl_->normalized, part, offset,
                   [&](std::string_view rest, std::size_t at) { encoder.rest(rest, at); });
  });
  if (marks)
    for (auto id : impl_->after) encoder.mark(id, text.size());
  return ids;
}

std::string BytePairTokenizer::decode(std::span<const std::int64_t> ids, bool skip_special) const {
  std::string bytes;
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab_size() || !impl_->known[id]) continue;
    if (!skip_special || !impl_->special[id]) bytes += impl_->bytes[id];
  }
  return lossy(bytes);
}

}  // namespace trireme

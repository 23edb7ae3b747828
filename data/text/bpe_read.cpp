// tokenizer.json into what encoding uses. Whatever would change ids and is not understood is refused by name.
#include "comm/error.h"
#include "data/json.h"
#include "data/text/bpe_model.h"
#include "data/text/text.h"
#include "data/text/unicode.h"

#include <algorithm>
#include <cctype>

namespace trireme {
namespace {

using nlohmann::json;
using Impl = BytePairTokenizer::Impl;

constexpr std::int64_t max_holes = 1 << 16;  // ids without a token: a hostile file must not take all memory
constexpr std::size_t max_steps = 16;        // of the pre-tokenizer: each is a recursion of split_from()
constexpr const char* gpt2_split = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string text(const json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}
bool flag(const json& object, const char* key, bool otherwise) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}
const json& part(const json& object, const char* key) {
  static const json none;
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it == object.end() ? none : *it;
}

class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name), impl_(std::make_shared<Impl>()) {}

  std::shared_ptr<const Impl> read(std::string_view tokenizer, std::string_view config) {
    impl_->name = name_, impl_->json = tokenizer, impl_->config = config;
    const json root = parse_json(tokenizer);
    if (!root.is_object()) throw wrong("is no JSON, or cut short", "copy the file again");
    const json& model = part(root, "model");
    if (!model.is_object()) throw wrong("has no `model`", "use the tokenizer.json that transformers writes");
    options(model);
    tokens_ = std::int64_t(part(model, "vocab").size() + part(root, "added_tokens").size());
    vocabulary(model);
    added(part(root, "added_tokens"));
    merges(model);
    normalizer(part(root, "normalizer"));
    add_normalized();
    pre_tokenizer(part(root, "pre_tokenizer"), true);
    if (!byte_level_) throw foreign("the pre-tokenizer", "one without ByteLevel");
    decoder(part(root, "decoder"));
    post_processor(part(root, "post_processor"));
    marks(config);
    return impl_;
  }

 private:
  DataError wrong(const std::string& what, const std::string& cure) const { return DataError(name_, what, cure); }
  DataError foreign(const std::string& what, const std::string& kind) const {
    return wrong(what + " is " + (kind.empty() ? "of no known type" : kind) + ", which is not supported",
                 "use a byte-level BPE tokenizer of the families GPT-2, Qwen2 or Llama-3");
  }

  std::int32_t id_of(const json& value, const std::string& token) const {
    const bool whole = value.is_number_integer();
    if (!whole || value < 0 || value >= tokens_ + max_holes)
      throw wrong("the token `" + token + "` has the id " + value.dump() + ", which is none",
                  "ids are whole numbers from 0 to " + std::to_string(tokens_ + max_holes - 1));
    return value.get<std::int32_t>();
  }

  void put(std::int32_t id, const std::string& token, const std::string& bytes) {
    if (id >= std::int32_t(impl_->bytes.size()))
      impl_->bytes.resize(id + 1), impl_->known.resize(id + 1), impl_->special.resize(id + 1);
    if (impl_->known[id])
      throw wrong("the id " + std::to_string(id) + " belongs to two tokens, one of them `" + token + "`",
                  "use the tokenizer.json that transformers writes");
    impl_->known[id] = 1;
    impl_->bytes[id] = bytes;
    impl_->names.emplace(token, id);
  }

  void options(const json& model) {
    const std::string type = text(model, "type");
    if (!(type == "BPE" || (type.empty() && model.contains("merges")))) throw foreign("the model", type);
    if (flag(model, "byte_fallback", false)) throw foreign("the model", "BPE with byte_fallback (SentencePiece)");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!text(model, key).empty()) throw foreign("the model", std::string("BPE with ") + key);
    if (const json& dropout = part(model, "dropout"); dropout.is_number() && dropout > 0)
      throw foreign("the model", "BPE with dropout");
    impl_->ignore_merges = flag(model, "ignore_merges", false);
    impl_->fuse_unknown = flag(model, "fuse_unk", false);
  }

  void vocabulary(const json& model) {
    const json& vocab = part(model, "vocab");
    if (!vocab.is_object() || vocab.empty())
      throw wrong("has no vocabulary", "use the tokenizer.json that transformers writes");
    std::vector<std::pair<std::int32_t, std::string>> spelled;
    for (const auto& [token, value] : vocab.items()) {
      std::string bytes;
      const std::int32_t id = id_of(value, token);
      if (byte_alphabet().read(token, bytes))
        spelled.emplace_back(id, bytes);
      else
        bytes = token;
      put(id, token, bytes);
      longest_ = std::max(longest_, bytes.size());
    }
    impl_->byte_ids.fill(-1);
    for (const auto& [id, bytes] : spelled) {
      impl_->words.emplace(impl_->bytes[id], id);
      if (bytes.size() == 1) impl_->byte_ids[static_cast<unsigned char>(bytes[0])] = id;
    }
    if (const std::string unknown = text(model, "unk_token"); !unknown.empty())
      if (const auto it = impl_->names.find(unknown); it != impl_->names.end()) impl_->unknown = it->second;
  }

  void added(const json& tokens) {
    for (const json& t : tokens) {
      const std::string content = text(t, "content");
      if (content.empty()) continue;
      const std::int32_t id = id_of(part(t, "id"), content);
      const auto known = impl_->names.find(content);
      if (known == impl_->names.end())
        put(id, content, decoded(content));
      else if (known->second != id)
        throw wrong("the added token `" + content + "` has the ids " + std::to_string(known->second) + " and " +
                        std::to_string(id),
                    "use the tokenizer.json that transformers writes");
      if (flag(t, "single_word", false)) throw foreign("the added token `" + content + "`", "single_word");
      AddedToken token{content, id, flag(t, "special", false), flag(t, "lstrip", false), flag(t, "rstrip", false)};
      impl_->special[id] = token.special;
      if (flag(t, "normalized", !token.special)) {
        later_.push_back(std::move(token));
      } else {
        impl_->raw.add(std::move(token));
      }
    }
  }

  static std::string decoded(const std::string& spelled) {
    std::string bytes;
    return byte_alphabet().read(spelled, bytes) ? bytes : spelled;
  }

  std::int32_t named(const std::string& token, std::size_t rank) const {
    const auto it = impl_->names.find(token);
    if (it == impl_->names.end())
      throw wrong("merge " + std::to_string(rank + 1) + " names `" + token + "`, which is not in the vocabulary",
                  "use the tokenizer.json that transformers writes");
    return it->second;
  }

  void merges(const json& model) {
    const json& list = part(model, "merges");
    if (!list.is_array() || (list.empty() && longest_ > 1 && !impl_->ignore_merges))
      throw wrong("has no merges, so text cannot be encoded", "use the tokenizer.json that transformers writes");
    impl_->merges.reserve(list.size());
    for (std::size_t rank = 0; rank < list.size(); ++rank) {
      const json& merge = list[rank];
      std::string a, b;
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        a = merge[0].get<std::string>(), b = merge[1].get<std::string>();
      } else if (merge.is_string()) {  // files before 2024
        const std::string both = merge.get<std::string>();
        const std::size_t space = both.find(' ');
        if (space == both.npos || both.find(' ', space + 1) != both.npos) throw not_two(rank);
        a = both.substr(0, space), b = both.substr(space + 1);
      } else {
        throw not_two(rank);
      }
      const std::int32_t left = named(a, rank), right = named(b, rank);
      impl_->merges.add(left, right, {std::int32_t(rank), named(a + b, rank)});
    }
  }
  DataError not_two(std::size_t rank) const {
    return wrong("merge " + std::to_string(rank + 1) + " is no pair of tokens", "copy the file again");
  }

  void normalizer(const json& n) {
    if (n.is_null()) {
    } else if (const std::string type = text(n, "type"); type == "NFC") {
      impl_->nfc = true;
    } else if (type == "Sequence") {
      for (const json& step : part(n, "normalizers")) normalizer(step);
    } else {
      throw foreign("the normalizer", type);
    }
  }

  // Those that are looked for after normalization.
  void add_normalized() {
    for (AddedToken& token : later_) {
      if (impl_->nfc) token.text = encode_utf8(nfc(decode_utf8(token.text)));
      impl_->bytes[token.id] = decoded(token.text);  // what the package decodes it to
      impl_->normalized.add(token);
    }
  }

  void split(const std::string& expression) {
    impl_->steps.push_back({false, std::make_shared<const Pattern>(expression, name_)});
  }

  void pre_tokenizer(const json& p, bool last) {
    if (impl_->steps.size() > max_steps) throw foreign("the pre-tokenizer", "one of many steps");
    const std::string type = text(p, "type");
    if (type == "Sequence") {
      const json& steps = part(p, "pretokenizers");
      for (std::size_t i = 0; i < steps.size(); ++i) pre_tokenizer(steps[i], last && i + 1 == steps.size());
    } else if (type == "ByteLevel") {
      if (!last) throw foreign("the pre-tokenizer", "a Sequence that goes on after ByteLevel");
      byte_level_ = true;
      if (flag(p, "add_prefix_space", true)) impl_->steps.push_back({true, nullptr});
      if (flag(p, "use_regex", true)) split(gpt2_split);
    } else if (type == "Digits") {
      split(flag(p, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else if (type == "Split") {
      if (text(p, "behavior") != "Isolated") throw foreign("the pre-tokenizer", "Split with " + text(p, "behavior"));
      const std::string expression = text(part(p, "pattern"), "Regex"), literal = text(part(p, "pattern"), "String");
      if (expression.empty() && literal.empty()) throw foreign("the pre-tokenizer", "Split without a pattern");
      split(expression.empty() ? quoted(literal) : expression);
    } else {
      throw foreign("the pre-tokenizer", type);
    }
  }

  static std::string quoted(const std::string& literal) {
    std::string out;
    for (char c : literal) {
      if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) out += '\\';
      out += c;
    }
    return out;
  }

  void decoder(const json& d) const {
    const std::string type = text(d, "type");
    const json& steps = part(d, "decoders");
    if (type == "Sequence" && steps.size() == 1) return decoder(steps[0]);
    if (type != "ByteLevel") throw foreign("the decoder", type);
  }

  void post_processor(const json& p) {
    const std::string type = text(p, "type");
    if (p.is_null() || type == "ByteLevel") return;
    if (type == "Sequence") {
      for (const json& step : part(p, "processors")) post_processor(step);
      return;
    }
    if (type != "TemplateProcessing") throw foreign("the post-processor", type);
    std::vector<std::int32_t> before, after;
    bool text_seen = false;
    for (const json& piece : part(p, "single")) {
      if (piece.contains("Sequence")) {
        text_seen = true;
        continue;
      }
      const std::string token = text(part(piece, "SpecialToken"), "id");
      const json& ids = part(part(part(p, "special_tokens"), token.c_str()), "ids");
      if (!ids.is_array()) throw wrong("the post-processor names `" + token + "` without ids", "copy the file again");
      for (const json& id : ids) (text_seen ? after : before).push_back(id_of(id, token));
    }
    before.insert(before.end(), impl_->before.begin(), impl_->before.end());
    impl_->before = before;
    impl_->after.insert(impl_->after.end(), after.begin(), after.end());
    for (auto id : impl_->before) check(id);
    for (auto id : impl_->after) check(id);
  }
  void check(std::int32_t id) const {
    if (id >= std::int32_t(impl_->known.size()) || !impl_->known[id])
      throw wrong("the post-processor adds the id " + std::to_string(id) + ", which no token has",
                  "copy the file again");
  }

  void marks(std::string_view config) {
    if (config.empty()) return;
    const json root = parse_json(config);
    if (!root.is_object()) throw wrong("its tokenizer_config.json is no JSON, or cut short", "copy the file again");
    const auto mark = [&](const char* key) -> std::optional<std::int32_t> {
      const json& value = part(root, key);
      const std::string token = value.is_object() ? text(value, "content") : text(root, key);
      const auto it = impl_->names.find(token);
      return it == impl_->names.end() ? std::nullopt : std::optional(it->second);
    };
    impl_->bos = mark("bos_token"), impl_->eos = mark("eos_token"), impl_->pad = mark("pad_token");
  }

  const std::string& name_;
  std::shared_ptr<Impl> impl_;
  std::vector<AddedToken> later_;
  std::size_t longest_ = 0;
  std::int64_t tokens_ = 0;
  bool byte_level_ = false;
};

}  // namespace

std::shared_ptr<const Impl> read_bpe(std::string_view tokenizer, std::string_view config, const std::string& name) {
  return Reader(name).read(tokenizer, config);
}

}  // namespace trireme

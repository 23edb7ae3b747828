// What the rest of the program sees of a config: reading, printing, hashing, comparing and documenting, all
// on the one list of resolved values that a Reader makes.
#include "comm/error.h"
#include "framework/config/read.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <map>

namespace trireme {
namespace config {

std::string format(bool v) { return v ? "true" : "false"; }
std::string format(std::int64_t v) { return std::to_string(v); }

// Shortest text that reads back to the same bits, with a point, which YAML 1.1 tools need to see a
// number: 1.0e-5.
std::string format(double v) {
  std::array<char, 32> buffer;
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), v);
  const std::string text(buffer.data(), end);
  const auto e = text.find('e');
  std::string mantissa = text.substr(0, e);
  if (mantissa.find_first_not_of("-0123456789") == mantissa.npos) mantissa += ".0";
  if (e == text.npos) return mantissa;
  std::string exponent = text.substr(e + 2);
  exponent.erase(0, std::min(exponent.find_first_not_of('0'), exponent.size() - 1));
  return mantissa + "e" + text[e + 1] + exponent;
}

// Plain where every YAML reader sees the same text, single quotes where they are enough, else double with
// escapes.
std::string format(const std::string& v) {
  static constexpr std::string_view kReserved[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
  const auto word = [](unsigned char c) { return std::isalnum(c) || c == '_'; };
  const auto plain = [&](unsigned char c) {
    return word(c) || std::string_view("/.+-=@%").find(c) != std::string_view::npos;
  };
  std::string lower = v;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool starts = v.starts_with("./") || v.starts_with("../") ||
                      (!v.empty() && (std::isalpha(static_cast<unsigned char>(v[0])) || v[0] == '_' || v[0] == '/'));
  if (starts && std::all_of(v.begin(), v.end(), plain) &&
      std::find(std::begin(kReserved), std::end(kReserved), lower) == std::end(kReserved))
    return v;
  const bool control = std::any_of(v.begin(), v.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7f; });
  std::string quoted(1, control ? '"' : '\'');
  for (const char c : v) {
    const auto u = static_cast<unsigned char>(c);
    if (!control) {
      quoted.append(c == '\'' ? 2 : 1, c);
    } else if (c == '"' || c == '\\') {
      quoted.append(1, '\\').append(1, c);
    } else if (u < 0x20 || u == 0x7f) {
      static constexpr char kHex[] = "0123456789abcdef";
      c == '\n'   ? quoted.append("\\n")
      : c == '\t' ? quoted.append("\\t")
                  : quoted.append("\\x").append(1, kHex[u >> 4]).append(1, kHex[u & 15]);
    } else {
      quoted += c;
    }
  }
  return quoted + (control ? '"' : '\'');
}

}  // namespace config

namespace {

std::string cell(std::string text) {
  for (std::size_t i = 0; (i = text.find('|', i)) != text.npos; i += 2) text.replace(i, 1, "\\|");
  return text;
}

std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}

}  // namespace

Config::Config(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Config::Config(Config&&) noexcept = default;
Config& Config::operator=(Config&&) noexcept = default;
Config::~Config() = default;

Config Config::load(const std::string& path, const std::vector<std::string>& overrides) {
  return Config(std::make_unique<Impl>(Impl{path, config::load_tree(path, overrides)}));
}

Config Config::parse(std::string_view yaml, const std::string& file, const std::vector<std::string>& overrides) {
  return Config(std::make_unique<Impl>(Impl{file, config::parse_tree(yaml, file, overrides)}));
}

std::string Config::string_at(std::string_view key) const {
  const config::Node* node = impl_->root.find(key);
  const std::string name(key);
  if (!node) throw UsageError(impl_->file, name + ": this key is missing", "add " + name + ": NAME");
  if (node->kind != config::Node::Kind::text || node->text.empty())
    throw UsageError(node->origin.place(), name + ": is not a text", "write " + name + ": NAME");
  return node->text;
}

std::string Config::place(std::string_view key) const {
  const config::Node* node = &impl_->root;
  for (std::string_view rest = key; node && !rest.empty();) {
    const std::string_view name = rest.substr(0, rest.find('.'));
    node = node->find(name);
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
  }
  return (node ? node->origin.place() : impl_->file) + ": " + std::string(key);
}

void Config::read(const std::function<void(Fields&)>& visit) const {
  config::Reader reader(impl_->root, impl_->file);
  visit(reader);
  reader.finish();
}

std::string Config::print(const std::function<void(Fields&)>& visit, bool origins) const {
  constexpr std::size_t kWidest = 60;  // longer lines do not push all comments to the right
  const auto items = config::list_items(impl_->root, impl_->file, visit);
  std::vector<std::string> lines;
  std::size_t widest = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const bool empty = items[i].is_group && (i + 1 == items.size() || items[i + 1].depth <= items[i].depth);
    std::string line(2 * items[i].depth, ' ');
    line += config::format(items[i].key) + ":";
    if (!items[i].is_group || empty) line += " " + (empty ? "{}" : items[i].value);
    if (line.size() <= kWidest && !items[i].is_group) widest = std::max(widest, line.size());
    lines.push_back(std::move(line));
  }
  std::string text;
  for (std::size_t i = 0; i < items.size(); ++i) {
    text += lines[i];
    if (origins && !items[i].is_group) {
      text.append(std::max(widest, lines[i].size()) - lines[i].size() + 2, ' ');
      text += "# " + (items[i].origin ? printable(items[i].origin->comment()) : "default");
    }
    text += '\n';
  }
  return text.empty() ? "{}\n" : text;
}

std::vector<std::string> differing_keys(const Config& a, const Config& b, const std::function<void(Fields&)>& visit) {
  std::map<std::string, std::string> values;
  std::vector<std::string> keys;
  for (const auto& item : config::list_items(a.impl_->root, a.impl_->file, visit))
    if (!item.is_group && !item.may_change) values[item.path] = item.value;
  for (const auto& item : config::list_items(b.impl_->root, b.impl_->file, visit)) {
    if (item.is_group || item.may_change) continue;
    const auto found = values.find(item.path);
    if (found == values.end() || found->second != item.value) keys.push_back(item.path);
    if (found != values.end()) values.erase(found);
  }
  for (const auto& [path, value] : values) keys.push_back(path);  // keys that only the schema of `a` has
  return keys;
}

std::uint64_t config_hash(const Config& c, const std::function<void(Fields&)>& visit) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto add = [&](std::string_view text) {
    for (const char byte : text) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
    hash = (hash ^ 0xff) * 0x100000001b3;  // a byte that no UTF-8 holds ends each part
  };
  for (const auto& item : config::list_items(c.impl_->root, c.impl_->file, visit)) {
    if (item.is_group || item.may_change) continue;
    add(item.path);
    add(item.value);
  }
  return hash;
}

std::string document(const std::function<void(Fields&)>& visit) {
  config::Node empty;
  empty.kind = config::Node::Kind::mapping;
  std::string text = "| key | default | allowed | meaning |\n|---|---|---|---|\n";
  for (const auto& item : config::list_items(empty, "schema", visit))
    text += "| `" + item.path + "` | " + (item.is_group ? "" : "`" + cell(item.value) + "`") + " | " +
            cell(item.is_group ? "a group of keys" : item.allowed) + " | " + cell(item.doc) +
            (item.may_change && !item.is_group ? " (may change on resume)" : "") + " |\n";
  return text;
}

}  // namespace trireme

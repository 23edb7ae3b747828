// From files and the command line to one merged tree.
#include "comm/error.h"
#include "comm/nearest.h"
#include "framework/config/tree.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <unordered_map>

namespace trireme::config {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t kMaxFiles = 64;  // of one config, so that files extending twice each cannot explode

struct Loader {
  Budget budget;
  std::vector<fs::path> open;  // the chain of files being read
  std::size_t files = 0;
};

// `where` and `what` begin the message: the file itself, or the `extends` that names it.
std::string read_file(const std::string& path, const std::string& where, const std::string& what) {
  std::error_code ec;
  const auto status = fs::status(path, ec);
  if (!fs::exists(status)) {
    std::vector<std::string> names;
    for (fs::directory_iterator i(fs::path(path).parent_path().empty() ? "." : fs::path(path).parent_path(), ec), end;
         !ec && i != end && names.size() < 1000; i.increment(ec))
      names.push_back(i->path().filename().string());
    const std::string near = nearest(fs::path(path).filename().string(), names);
    throw UsageError(
        where, what + "no such file",
        near.empty() ? "check the path" : "did you mean " + (fs::path(path).parent_path() / near).string() + "?");
  }
  if (fs::is_directory(status)) throw UsageError(where, what + "is a directory", "name a YAML file in it");
  if (!fs::is_regular_file(status)) throw UsageError(where, what + "is not a regular file", "name a YAML file");
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError(where, what + "cannot be read", "check its permissions");
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) throw UsageError(where, what + "cannot be read", "check the file system");
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > kMaxFileBytes)
    throw UsageError(where, what + "is larger than 1 MiB", "a config is a short text: is this another kind of file?");
  return text;
}

Node read_extending(const std::string& text, const std::string& file, Loader& loader);

Node read_extended(const Node& name, const std::string& file, Loader& loader) {
  const std::string where = name.origin.place();
  if (name.kind != Node::Kind::text || name.text.empty())
    throw UsageError(where, "extends: not a file name", "write extends: base.yaml or extends: [a.yaml, b.yaml]");
  const std::string path = (fs::path(file).parent_path() / name.text).lexically_normal().string();
  const std::string what = "extends: " + show(path) + ": ";
  const std::string text = read_file(path, where, what);
  std::error_code ec;
  const fs::path canonical = fs::weakly_canonical(path, ec);
  if (std::find(loader.open.begin(), loader.open.end(), canonical) != loader.open.end())
    throw UsageError(where, what + "extends itself in a circle", "remove one of the extends");
  if (++loader.files > kMaxFiles)
    throw UsageError(where, what + "more than " + std::to_string(kMaxFiles) + " files", "extend fewer files");
  loader.open.push_back(canonical);
  Node node = read_extending(text, path, loader);
  loader.open.pop_back();
  return node;
}

// One file with everything it extends below it.
Node read_extending(const std::string& text, const std::string& file, Loader& loader) {
  Node own = parse_yaml(text, file, true, loader.budget);
  if (own.kind == Node::Kind::null) throw UsageError(file, "the file is empty", "write at least one key: value");
  if (own.kind != Node::Kind::mapping)
    throw UsageError(own.origin.place(), "the file is not a mapping of keys to values",
                     "write key: value, with a space after the colon");
  const auto extends =
      std::find_if(own.entries.begin(), own.entries.end(), [](const Entry& e) { return e.key == "extends"; });
  if (extends == own.entries.end()) return own;
  const Node names = std::move(extends->value);
  own.entries.erase(extends);
  Node merged;
  merged.kind = Node::Kind::mapping;
  merged.origin = own.origin;
  if (names.kind == Node::Kind::list) {
    for (const Node& name : names.items) merge(merged, read_extended(name, file, loader), "");
  } else {
    merge(merged, read_extended(names, file, loader), "");
  }
  merge(merged, std::move(own), "");
  return merged;
}

// "a.b=c" as the tree {a: {b: c}}.
Node parse_override(const std::string& text, Loader& loader) {
  const std::string source = "command line (" + brief(text) + ")";
  const auto equals = text.find('=');
  if (equals == std::string::npos) throw UsageError(source, "not an override", "write key=value, such as lr=1e-3");
  std::vector<std::string> keys;
  std::stringstream path(text.substr(0, equals) + ".");
  for (std::string key; std::getline(path, key, '.');) {
    const bool word = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
      return std::isalnum(c) || c == '_' || c == '-';
    });
    if (!word) throw UsageError(source, show(text.substr(0, equals)) + " is not a key", "write it as group.key=value");
    keys.push_back(key);
  }
  if (keys.size() >= kMaxDepth) throw UsageError(source, "nested too deeply", "write it as group.key=value");
  if (keys.front() == "extends")
    throw UsageError(source, "extends: only a file can extend another", "write extends: in a file of your own");
  Node node = parse_yaml(std::string_view(text).substr(equals + 1), source, false, loader.budget);
  if (node.kind == Node::Kind::text && !node.quoted && node.text.find(',') != std::string::npos)
    throw UsageError(source, brief(text.substr(0, equals)) + ": a comma list is a sweep: use trireme submit",
                     "a list is written [a,b], a text with a comma '\"a,b\"'");
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    Node outer;
    outer.kind = Node::Kind::mapping;
    outer.origin = node.origin;
    const Origin origin = node.origin;
    outer.entries.push_back({*key, origin, std::move(node)});
    node = std::move(outer);
  }
  return node;
}

void apply_overrides(Node& root, const std::vector<std::string>& overrides, Loader& loader) {
  for (const std::string& o : overrides) merge(root, parse_override(o, loader), "");
}

}  // namespace

void merge(Node& base, Node over, const std::string& path) {
  const bool mappings = base.kind == Node::Kind::mapping && over.kind == Node::Kind::mapping;
  const bool either = base.kind == Node::Kind::mapping || over.kind == Node::Kind::mapping;
  const bool empty = base.kind == Node::Kind::null || over.kind == Node::Kind::null;
  if (either && !mappings && !empty) {
    const bool group = base.kind == Node::Kind::mapping;
    throw UsageError(
        over.origin.place(),
        path + (group ? ": one value cannot replace the mapping of " : ": a mapping cannot replace the value of ") +
            base.origin.place(),
        group ? "set its keys: " + brief(path) + ".KEY" : "set one value");
  }
  if (!mappings) {
    base = std::move(over);
    return;
  }
  std::unordered_map<std::string, std::size_t> index;
  for (std::size_t i = 0; i < base.entries.size(); ++i) index.emplace(base.entries[i].key, i);
  for (Entry& e : over.entries) {
    if (const auto found = index.find(e.key); found == index.end()) {
      base.entries.push_back(std::move(e));
    } else {
      base.entries[found->second].origin = e.origin;
      merge(base.entries[found->second].value, std::move(e.value), join(path, e.key));
    }
  }
}

Node load_tree(const std::string& path, const std::vector<std::string>& overrides) {
  Loader loader;
  const std::string text = read_file(path, path.empty() ? "config file ''" : path, "");
  std::error_code ec;
  loader.open.push_back(fs::weakly_canonical(path, ec));
  Node root = read_extending(text, path, loader);
  apply_overrides(root, overrides, loader);
  return root;
}

Node parse_tree(std::string_view yaml, const std::string& file, const std::vector<std::string>& overrides) {
  if (yaml.size() > kMaxFileBytes) throw UsageError(file, "is larger than 1 MiB", "a config is a short text");
  Loader loader;
  std::error_code ec;
  loader.open.push_back(fs::weakly_canonical(file, ec));
  Node root = read_extending(std::string(yaml), file, loader);
  apply_overrides(root, overrides, loader);
  return root;
}

}  // namespace trireme::config

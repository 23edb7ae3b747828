// Internal to framework/config*.cpp: the tree a config is parsed into. Every node knows where it was written,
// and a tree is plain values: no sharing, no cycles, at most kMaxDepth deep, so that any walk over it ends.
#pragma once
#include "framework/config/config.h"

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::config {

inline constexpr std::size_t kMaxDepth = 64;
inline constexpr std::size_t kMaxNodes = 100'000;       // aliases count as often as they are used
inline constexpr std::size_t kMaxTextBytes = 16 << 20;  // the same for the bytes of texts
inline constexpr std::size_t kMaxFileBytes = 1 << 20;

struct Origin {
  std::shared_ptr<const std::string> source;  // file name, or "command line (lr=1e-3)"
  int line = 0, column = 0;                   // from 1; 0 on the command line
  std::string place() const;                  // "a.yaml:3:5"; for error messages
  std::string comment() const;                // "a.yaml:3" or "command line"; for printed configs
};

struct Entry;
struct Node {
  enum class Kind { null, text, list, mapping };
  Kind kind = Kind::null;
  bool quoted = false;  // text in quotes or a block, which is never a number
  std::string text;
  Origin origin;
  std::vector<Node> items;     // of a list
  std::vector<Entry> entries;  // of a mapping, in file order, keys unique

  const Node* find(std::string_view key) const;  // null when absent or not a mapping
};
struct Entry {
  std::string key;
  Origin origin;  // of the key
  Node value;
};

// What one Config may still read; shared by all its files.
struct Budget {
  std::size_t nodes = kMaxNodes, bytes = kMaxTextBytes;
};

// Parses one YAML document. `line_numbers` off: the source is not a file, and places show it alone.
// Returns a null node for an empty document. Throws UsageError.
Node parse_yaml(std::string_view text, const std::string& source, bool line_numbers, Budget& budget);
// Reads a file and what it extends; then the overrides.
Node load_tree(const std::string& path, const std::vector<std::string>& overrides);
Node parse_tree(std::string_view yaml, const std::string& file, const std::vector<std::string>& overrides);
// Mappings are merged key by key, everything else is replaced by `over`.
void merge(Node& base, Node over, const std::string& path);

// "model" + "width" -> "model.width".
std::string join(std::string_view path, std::string_view key);
// Cut to a length that fits a message; show() adds quotes.
std::string brief(std::string_view text);
std::string show(std::string_view text);
// YAML that parses back to the same value. Also what hashes and comparisons are made on.
std::string format(bool v);
std::string format(std::int64_t v);
std::string format(double v);
std::string format(const std::string& v);

}  // namespace trireme::config

namespace trireme {
struct Config::Impl {
  std::string file;
  config::Node root;
};
}  // namespace trireme

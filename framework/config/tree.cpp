// YAML text to a tree of our own. yaml-cpp's event interface is used, not its nodes: those share aliases, so
// that a walk over them can be endless or overflow the stack, and they silently keep the first of two equal
// keys.
#include "framework/config/tree.h"

#include "comm/error.h"

#include <algorithm>
#include <optional>
#include <sstream>
#include <unordered_map>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

namespace trireme::config {
namespace {

std::string at(const std::string& source, int line, int column) {
  return line > 0 ? source + ":" + std::to_string(line) + ":" + std::to_string(column) : source;
}

std::size_t height(const Node& n) {
  std::size_t h = 0;
  for (const Node& i : n.items) h = std::max(h, height(i));
  for (const Entry& e : n.entries) h = std::max(h, height(e.value));
  return h + 1;
}

class Builder : public YAML::EventHandler {
 public:
  Builder(const std::string& source, bool line_numbers, Budget& budget)
      : source_(std::make_shared<const std::string>(source)), line_numbers_(line_numbers), budget_(budget) {}

  Node take() { return std::move(root_); }
  // Where the innermost open list or mapping began; yaml-cpp itself reports a missing bracket at the end of
  // the file.
  std::optional<Origin> open() const {
    return frames_.empty() ? std::nullopt : std::optional(frames_.back().node.origin);
  }
  std::string path() const {
    std::string path;
    for (const Frame& f : frames_)
      if (f.has_key) path = join(path, f.key);
    return path;
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1)
      fail(mark, "a second document starts here", "a config is one document: remove the --- or ... line");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (at_key()) fail(mark, "a key is missing before the colon", "write key: value");
    Node node = make(Node::Kind::null, mark);
    // An absent value is marked where the next token stands; the key is the place to look at.
    if (!frames_.empty() && frames_.back().has_key && node.origin.line != frames_.back().key_origin.line)
      node.origin = frames_.back().key_origin;
    add(std::move(node), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    if (value.find('\0') != std::string::npos) fail(mark, "a text with a NUL character", "remove the \\0 escape");
    if (at_key()) return set_key(mark, value);
    Node node = make(Node::Kind::text, mark);
    node.text = value;
    node.quoted = tag == "!";
    spend(origin(mark), 0, value.size());
    add(std::move(node), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (at_key()) fail(mark, "an alias as a key", "write the key as text");
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end())
      fail(mark, "the alias stands inside the node it refers to (a cycle)", "remove the alias");
    if (frames_.size() + height(found->second) > kMaxDepth) fail_depth(mark);
    add(copy(origin(mark), found->second), 0);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    start(Node::Kind::list, mark, tag, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    start(Node::Kind::mapping, mark, tag, anchor);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapEnd() override { end(); }

 private:
  struct Frame {
    Node node;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key;
    Origin key_origin;
    std::unordered_map<std::string, int> lines;  // of the keys seen
  };

  [[noreturn]] void fail(const Origin& at, const std::string& what, std::string_view cure) const {
    const std::string where = path();
    throw UsageError(at.place(), where.empty() ? what : brief(where) + ": " + what, cure);
  }
  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what, std::string_view cure) const {
    fail(origin(mark), what, cure);
  }
  [[noreturn]] void fail_depth(const YAML::Mark& mark) const {
    fail(mark, "nested deeper than " + std::to_string(kMaxDepth) + " levels", "flatten the config");
  }
  Origin origin(const YAML::Mark& mark) const {
    return line_numbers_ ? Origin{source_, mark.line + 1, mark.column + 1} : Origin{source_};
  }
  bool at_key() const {
    return !frames_.empty() && frames_.back().node.kind == Node::Kind::mapping && !frames_.back().has_key;
  }
  Node make(Node::Kind kind, const YAML::Mark& mark) {
    spend(origin(mark), 1, 0);
    Node node;
    node.kind = kind;
    node.origin = origin(mark);
    return node;
  }
  void spend(const Origin& at, std::size_t nodes, std::size_t bytes) {
    constexpr std::string_view kCure = "remove the aliases that multiply it, or shorten the config";
    if (nodes > budget_.nodes) fail(at, "more than " + std::to_string(kMaxNodes) + " values, aliases expanded", kCure);
    if (bytes > budget_.bytes) fail(at, "more than 16 MiB of text, aliases expanded", kCure);
    budget_.nodes -= nodes;
    budget_.bytes -= bytes;
  }
  // A copy paid for node by node, so that an alias bomb stops at the budget.
  Node copy(const Origin& at, const Node& from) {
    spend(at, 1, from.text.size());
    Node to;
    to.kind = from.kind;
    to.quoted = from.quoted;
    to.text = from.text;
    to.origin = from.origin;
    for (const Node& i : from.items) to.items.push_back(copy(at, i));
    for (const Entry& e : from.entries) {
      spend(at, 0, e.key.size());
      to.entries.push_back({e.key, e.origin, copy(at, e.value)});
    }
    return to;
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (tag != "?" && tag != "!" && !tag.empty())
      fail(mark, "the tag " + show(tag) + " is not used in configs", "remove the tag");
  }
  void set_key(const YAML::Mark& mark, const std::string& key) {
    Frame& frame = frames_.back();
    if (key.empty()) fail(mark, "an empty key", "write key: value");
    if (key == "<<") fail(mark, "merge keys (<<) are not supported", "use extends: FILE, or an alias as a value");
    const auto [seen, fresh] = frame.lines.emplace(key, mark.line + 1);
    if (!fresh) {
      const std::string first = line_numbers_ ? "; the first is on line " + std::to_string(seen->second) : "";
      throw UsageError(origin(mark).place(), brief(join(path(), key)) + ": key given twice" + first,
                       "keep one of them");
    }
    spend(origin(mark), 0, key.size());
    frame.key = key;
    frame.key_origin = origin(mark);
    frame.has_key = true;
  }
  void start(Node::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    refuse_tag(mark, tag);
    if (at_key())
      fail(mark, "a list or mapping as a key", "close every [ and {, or quote the text: keys are plain text");
    if (frames_.size() + 1 > kMaxDepth) fail_depth(mark);
    Frame frame;
    frame.node = make(kind, mark);
    frame.anchor = anchor;
    frames_.push_back(std::move(frame));
  }
  void end() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    add(std::move(frame.node), frame.anchor);
  }
  void add(Node node, YAML::anchor_t anchor) {
    if (anchor != 0) {
      anchors_.insert_or_assign(anchor, copy(node.origin, node));
    }
    if (frames_.empty()) {
      root_ = std::move(node);
    } else if (Frame& frame = frames_.back(); frame.node.kind == Node::Kind::list) {
      frame.node.items.push_back(std::move(node));
    } else {
      frame.node.entries.push_back({std::move(frame.key), std::move(frame.key_origin), std::move(node)});
      frame.has_key = false;
    }
  }

  std::shared_ptr<const std::string> source_;
  bool line_numbers_;
  Budget& budget_;
  int documents_ = 0;
  Node root_;
  std::vector<Frame> frames_;
  std::unordered_map<YAML::anchor_t, Node> anchors_;  // finished ones only: an open one is a cycle
};

struct Rewrite {
  std::string_view found, what, cure;
};
// yaml-cpp's messages, in the words of somebody who wrote a config.
constexpr Rewrite kRewrites[] = {
    {"illegal tab", "a tab in the indentation", "indent with spaces"},
    {"illegal map value", "a colon where no key can stand",
     "check the indentation, a missing space after an earlier colon, or quote a text that holds ': '"},
    {"end of map not found", "the indentation fits no open mapping", "align the key with its siblings"},
    {"end of sequence not found", "the indentation fits no open list", "align the entries of the list"},
    {"end of map flow", "the mapping opened here has no closing }", "close it"},
    {"end of sequence flow", "the list opened here has no closing ]", "close it"},
    {"illegal flow end", "a closing bracket that nothing opened", "remove it, or quote the text"},
    {"illegal block entry", "a list entry (- ) where none can stand", "put it on a line of its own"},
    {"illegal EOF in scalar", "a quoted text is never closed", "add the closing quote"},
    {"illegal document indicator", "a quoted text is never closed before ---", "add the closing quote"},
    {"referenced anchor", "an alias (*name) without its anchor (&name)", "quote a text that starts with *"},
    {"alias not found", "a * without a name", "quote a text that starts with *"},
    {"anchor not found", "a & without a name", "quote a text that starts with &"},
    {"unknown token", "a character that cannot start a value", "quote the text"},
    {"unknown escape", "an unknown escape in a double-quoted text", "use single quotes, or write \\\\ for a backslash"},
    {"illegal map key", "a key where none can stand", "check the indentation"},
};

// Bytes that yaml-cpp would misread: its scanner takes 0x04 for the end of the file and replaces broken
// UTF-8.
void check_bytes(std::string_view text, const std::string& source, bool line_numbers) {
  int line = 1, column = 1;
  const auto bad = [&](std::string_view what, std::string_view cure) {
    throw UsageError(line_numbers ? at(source, line, column) : source, what, cure);
  };
  for (std::size_t i = 0; i < text.size(); ++column) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '\n') line += 1, column = 0;
    if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f)
      bad("a control character", "a config is text: is this another kind of file?");
    const int more = c < 0x80                ? 0
                     : c >= 0xc2 && c < 0xe0 ? 1
                     : c >= 0xe0 && c < 0xf0 ? 2
                     : c >= 0xf0 && c < 0xf5 ? 3
                                             : -1;
    bool good = more >= 0 && i + more < text.size();
    for (int k = 1; good && k <= more; ++k) good = (static_cast<unsigned char>(text[i + k]) & 0xc0) == 0x80;
    if (!good) bad("a byte that is not UTF-8", "save the file as UTF-8");
    i += more + 1;
  }
}

std::string_view line_of(std::string_view text, int line) {
  for (; line > 0; --line) text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
  return text.substr(0, text.find('\n'));
}

[[noreturn]] void rewrite(const YAML::Exception& e, std::string_view text, const std::string& source, bool line_numbers,
                          const Builder& builder) {
  int line = std::max(e.mark.line, 0), column = std::max(e.mark.column, 0);
  std::string what = e.msg.empty() ? "not valid YAML" : e.msg;
  std::string cure = "check the YAML around this place";
  for (const Rewrite& r : kRewrites) {
    if (e.msg.find(r.found) == std::string::npos) continue;
    what = r.what;
    cure = r.cure;
    if (const auto open = builder.open(); open && r.found.ends_with("flow") && line_numbers)
      line = open->line - 1, column = open->column - 1;
    break;
  }
  const std::string_view here = line < static_cast<int>(text.size()) ? line_of(text, line) : "";
  if (const auto indent = here.find_first_not_of(' '); indent != here.npos && here[indent] == '\t') {
    what = kRewrites[0].what;
    cure = kRewrites[0].cure;
    column = static_cast<int>(indent);
  }
  const std::string path = builder.path();
  throw UsageError(line_numbers ? at(source, line + 1, column + 1) : source,
                   (path.empty() ? "" : brief(path) + ": ") + what, cure);
}

}  // namespace

std::string Origin::place() const { return at(*source, line, column); }
std::string Origin::comment() const { return line > 0 ? *source + ":" + std::to_string(line) : "command line"; }

const Node* Node::find(std::string_view key) const {
  for (const Entry& e : entries)
    if (e.key == key) return &e.value;
  return nullptr;
}

std::string join(std::string_view path, std::string_view key) {
  std::string joined(path);
  if (!path.empty()) joined += '.';
  return joined.append(key);
}

std::string brief(std::string_view text) {
  constexpr std::size_t kMost = 80;
  if (text.size() <= kMost) return std::string(text);
  std::size_t cut = kMost;
  while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) --cut;  // keep UTF-8 characters whole
  return std::string(text.substr(0, cut)) + "...";
}

std::string show(std::string_view text) { return "'" + brief(text) + "'"; }

Node parse_yaml(std::string_view text, const std::string& source, bool line_numbers, Budget& budget) {
  check_bytes(text, source, line_numbers);
  Builder builder(source, line_numbers, budget);
  try {
    std::istringstream in{std::string(text)};
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    rewrite(e, text, source, line_numbers, builder);
  }
  Node root = builder.take();
  if (!root.origin.source) root.origin = {std::make_shared<const std::string>(source)};
  return root;
}

}  // namespace trireme::config

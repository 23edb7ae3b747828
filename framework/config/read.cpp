#include "framework/config/read.h"

#include "comm/error.h"
#include "comm/nearest.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace trireme::config {
namespace {

[[noreturn]] void bad(const Node& node, const std::string& path, std::string_view what, std::string_view cure) {
  throw UsageError(node.origin.place(), path + ": " + std::string(what), cure);
}

// The text of a scalar, or an error that says what stands there instead.
const std::string& text_of(const Node& node, const std::string& path, const std::string& allowed) {
  switch (node.kind) {
    case Node::Kind::null:
      bad(node, path, "has no value", "write " + allowed + ", or remove the key to get the default");
    case Node::Kind::list:
      bad(node, path, "is a list", "write " + allowed);
    case Node::Kind::mapping:
      bad(node, path, "is a mapping", "write " + allowed);
    case Node::Kind::text:
      break;
  }
  return node.text;
}

template <class T>
std::string describe(std::string_view type, const Range<T>& r) {
  constexpr Range<T> all;
  std::string text(type);
  if (r.min > all.min && r.max < all.max) return text + ", " + format(r.min) + " to " + format(r.max);
  if (r.min > all.min) return text + ", " + format(r.min) + " or more";
  if (r.max < all.max) return text + ", " + format(r.max) + " or less";
  return text;
}

bool to_bool(const Node& node, const std::string& path) {
  const std::string& text = text_of(node, path, "true or false");
  if (!node.quoted && text == "true") return true;
  if (!node.quoted && text == "false") return false;
  bad(node, path, show(text) + " is not true or false",
      node.quoted ? "write true or false, without quotes" : "write true or false");
}

std::int64_t to_integer(const Node& node, const std::string& path, const std::string& allowed) {
  const std::string& text = text_of(node, path, allowed);
  if (node.quoted) bad(node, path, show(text) + " in quotes is a text, not an integer", "remove the quotes");
  std::int64_t v = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, v);
  if (stop == end && error == std::errc::result_out_of_range)
    bad(node, path, show(text) + " does not fit 64 bits", "write " + allowed);
  const std::string_view digits = std::string_view(text).substr(text.starts_with('-'));
  if (stop != end || error != std::errc())
    bad(node, path, show(text) + " is not an integer",
        "write " + allowed + " (digits only: no exponent, point or underscore)");
  if (digits.size() > 1 && digits[0] == '0')
    bad(node, path, show(text) + " starts with a zero, which some tools read as octal", "remove the zero");
  return v;
}

double to_double(const Node& node, const std::string& path, const std::string& allowed) {
  const std::string& text = text_of(node, path, allowed);
  if (node.quoted) bad(node, path, show(text) + " in quotes is a text, not a number", "remove the quotes");
  double v = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, v);
  if (stop == end && error == std::errc::result_out_of_range)
    bad(node, path, show(text) + " does not fit a 64-bit float", "write " + allowed);
  std::string word = text;
  std::erase_if(word, [](char c) { return c == '.' || c == '-' || c == '+'; });
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
  if (word == "inf" || word == "infinity" || word == "nan")
    bad(node, path, show(text) + " is not finite", "write " + allowed);
  if (stop != end || error != std::errc() || !std::isfinite(v))
    bad(node, path, show(text) + " is not a number", "write " + allowed + ", such as 0.1 or 1e-3");
  return v;
}

template <class T>
void check_range(T v, const Range<T>& r, const Node& node, const std::string& path, const std::string& allowed) {
  if (v < r.min || v > r.max) bad(node, path, show(node.text) + " is out of range", "allowed: " + allowed);
}

template <class T, class Convert>
std::vector<T> to_list(const Node& node, const std::string& path, std::string_view what, Convert convert) {
  if (node.kind == Node::Kind::null) bad(node, path, "has no value", "write [] for an empty list");
  if (node.kind == Node::Kind::text)
    bad(node, path, show(node.text) + " is not a list", "write " + std::string(what) + ": [" + brief(node.text) + "]");
  if (node.kind == Node::Kind::mapping) bad(node, path, "is a mapping", "write " + std::string(what) + ": [a, b]");
  std::vector<T> list;
  for (const Node& item : node.items) list.push_back(convert(item, path + "[" + std::to_string(list.size()) + "]"));
  return list;
}

std::string words_of(std::span<const std::string_view> words) {
  std::string all;
  for (const auto w : words) all.append(all.empty() ? "" : ", ").append(w);
  return all;
}

// Lists long enough to hide the message are cut.
std::string list_keys(const std::vector<std::string>& keys) {
  std::string all;
  for (std::size_t i = 0; i < keys.size() && i < 30; ++i) all.append(i ? ", " : "").append(keys[i]);
  return keys.size() > 30 ? all + ", ..." : all;
}

template <class T>
std::string format_list(const std::vector<T>& v) {
  std::string text = "[";
  for (std::size_t i = 0; i < v.size(); ++i) text += (i ? ", " : "") + format(v[i]);
  return text + "]";
}
template <class T>
std::string format_any(const T& v) {
  return format(v);
}
template <class T>
std::string format_any(const std::vector<T>& v) {
  return format_list(v);
}

// Puts the variables of a schema back to the values they held.
class Restorer : public Fields {
 public:
  explicit Restorer(const std::map<std::string, Value>& values) : values_(values) {}
  void operator()(std::string_view k, bool& v, std::string_view) override { put(k, v); }
  void operator()(std::string_view k, std::int64_t& v, std::string_view, Range<std::int64_t>) override { put(k, v); }
  void operator()(std::string_view k, double& v, std::string_view, Range<double>) override { put(k, v); }
  void operator()(std::string_view k, std::string& v, std::string_view) override { put(k, v); }
  void operator()(std::string_view k, std::vector<std::string>& v, std::string_view) override { put(k, v); }
  void operator()(std::string_view k, std::vector<std::int64_t>& v, std::string_view) override { put(k, v); }
  void operator()(std::string_view k, std::vector<double>& v, std::string_view) override { put(k, v); }
  void choice(std::string_view k, std::string& v, std::span<const std::string_view>, std::string_view) override {
    put(k, v);
  }
  void resume_may_change(bool) override {}
  void require(bool, std::string_view, std::string_view, std::string_view) override {}

 protected:
  void begin(std::string_view key, std::string_view) override { paths_.push_back(join(paths_.back(), key)); }
  void end() override { paths_.pop_back(); }

 private:
  template <class T>
  void put(std::string_view key, T& v) {
    const auto found = values_.find(join(paths_.back(), key));
    if (found == values_.end()) return;
    if (const T* value = std::get_if<T>(&found->second)) v = *value;
  }
  const std::map<std::string, Value>& values_;
  std::vector<std::string> paths_{""};
};

}  // namespace

Reader::Reader(const Node& root, std::string file) : file_(std::move(file)) {
  levels_.push_back({"", &root, false});
  known_[""];
}

// A schema that lists a key twice, or a default that its own range refuses, is a mistake of the program.
std::string Reader::enter(std::string_view key) {
  std::vector<std::string>& keys = known_[levels_.back().path];
  const std::string path = join(levels_.back().path, key);
  if (std::find(keys.begin(), keys.end(), key) != keys.end())
    throw Error(ExitCode::bug, path, "the schema lists this key twice", "rename one in its fields()");
  keys.emplace_back(key);
  return path;
}

template <class T, class Convert>
void Reader::take(std::string_view key, T& v, std::string_view doc, const std::string& allowed, Convert convert) {
  const std::string path = enter(key);
  const Level& level = levels_.back();
  const Node* node = level.node ? level.node->find(key) : nullptr;
  before_.emplace(path, v);
  if (node) {
    v = convert(*node, path);
  } else {
    // The default is converted as if it had been written, so that a printed config always loads again.
    Budget budget;
    const Node written = parse_yaml(format_any(v), "default of " + path, false, budget);
    try {
      convert(written, path);
    } catch (const Error& e) {
      throw Error(ExitCode::bug, "", e.what());
    }
  }
  items_.push_back({path, std::string(key), levels_.size() - 1, false, level.may_change, format_any(v),
                    node ? &node->origin : nullptr, allowed, std::string(doc)});
}

void Reader::operator()(std::string_view key, bool& v, std::string_view doc) {
  take(key, v, doc, "true or false", to_bool);
}

void Reader::operator()(std::string_view key, std::int64_t& v, std::string_view doc, Range<std::int64_t> r) {
  const std::string allowed = describe("an integer", r);
  take(key, v, doc, allowed, [&](const Node& node, const std::string& path) {
    const std::int64_t value = to_integer(node, path, allowed);
    check_range(value, r, node, path, allowed);
    return value;
  });
}

void Reader::operator()(std::string_view key, double& v, std::string_view doc, Range<double> r) {
  const std::string allowed = describe("a number", r);
  take(key, v, doc, allowed, [&](const Node& node, const std::string& path) {
    const double value = to_double(node, path, allowed);
    check_range(value, r, node, path, allowed);
    return value;
  });
}

void Reader::operator()(std::string_view key, std::string& v, std::string_view doc) {
  take(key, v, doc, "a text",
       [](const Node& node, const std::string& path) { return text_of(node, path, "a text ('' for an empty one)"); });
}

void Reader::operator()(std::string_view key, std::vector<std::string>& v, std::string_view doc) {
  take(key, v, doc, "a list of texts", [&](const Node& node, const std::string& path) {
    return to_list<std::string>(node, path, key,
                                [](const Node& n, const std::string& p) { return text_of(n, p, "a text"); });
  });
}

void Reader::operator()(std::string_view key, std::vector<std::int64_t>& v, std::string_view doc) {
  take(key, v, doc, "a list of integers", [&](const Node& node, const std::string& path) {
    return to_list<std::int64_t>(node, path, key,
                                 [](const Node& n, const std::string& p) { return to_integer(n, p, "an integer"); });
  });
}

void Reader::operator()(std::string_view key, std::vector<double>& v, std::string_view doc) {
  take(key, v, doc, "a list of numbers", [&](const Node& node, const std::string& path) {
    return to_list<double>(node, path, key,
                           [](const Node& n, const std::string& p) { return to_double(n, p, "a number"); });
  });
}

void Reader::choice(std::string_view key, std::string& v, std::span<const std::string_view> words,
                    std::string_view doc) {
  const std::string allowed = words_of(words);
  take(key, v, doc, allowed, [&](const Node& node, const std::string& path) {
    const std::string& text = text_of(node, path, "one of " + allowed);
    if (std::find(words.begin(), words.end(), text) != words.end()) return text;
    const std::string near = nearest(text, std::vector<std::string>(words.begin(), words.end()));
    bad(node, path, show(text) + " is not a choice",
        (near.empty() ? "" : "did you mean " + near + "? ") + "allowed: " + allowed);
  });
}

void Reader::begin(std::string_view key, std::string_view doc) {
  const std::string path = enter(key);
  const Level& level = levels_.back();
  const Node* node = level.node ? level.node->find(key) : nullptr;
  if (node && node->kind == Node::Kind::null)
    bad(*node, path, "has no keys", "indent its keys below it, or remove the line");
  if (node && node->kind != Node::Kind::mapping)
    bad(*node, path, (node->kind == Node::Kind::list ? std::string("a list") : show(node->text)) + " is not a mapping",
        "indent its keys below it");
  items_.push_back({path, std::string(key), levels_.size() - 1, true, level.may_change, "",
                    node ? &node->origin : nullptr, "", std::string(doc)});
  known_[path];
  levels_.push_back({path, node, level.may_change});
}

void Reader::require(bool ok, std::string_view key, std::string_view message, std::string_view cure) {
  if (ok || failure_) return;
  const Node* node = levels_.back().node;
  for (std::string_view rest = key; node && !rest.empty();) {
    const std::string_view name = rest.substr(0, rest.find('.'));
    node = node->find(name);
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
  }
  failure_ = Failure{node ? node->origin.place() : file_, join(levels_.back().path, key) + ": " + std::string(message),
                     std::string(cure)};
}

void Reader::unknown(const Entry& entry, const std::string& path) const {
  const std::string full = join(path, entry.key);
  const std::vector<std::string>& keys = known_.at(path);
  std::string cure = nearest(entry.key, keys);
  if (cure.empty()) {
    // A known key in the wrong group: under its own name, or written with dots.
    for (const Item& item : items_) {
      if (item.key == entry.key) cure = item.path;
      if (item.path == full) cure = item.path + ", nested as a mapping";
    }
  }
  cure = cure.empty() ? keys.empty() ? "remove it: no keys are known here" : "known keys: " + list_keys(keys)
                      : "did you mean " + cure + "?";
  throw UsageError(entry.origin.place(), brief(full) + ": unknown key", cure);
}

void Reader::refuse_unknown(const Node& mapping, const std::string& path) const {
  const std::vector<std::string>& keys = known_.at(path);
  const std::set<std::string_view> known(keys.begin(), keys.end());
  for (const Entry& e : mapping.entries) {
    if (!known.contains(e.key)) unknown(e, path);
    if (known_.contains(join(path, e.key))) refuse_unknown(e.value, join(path, e.key));
  }
}

void Reader::finish() const {
  refuse_unknown(*levels_.front().node, "");
  if (failure_) throw UsageError(failure_->where, failure_->what, failure_->cure);
}

std::vector<Item> list_items(const Node& root, const std::string& file, const std::function<void(Fields&)>& visit) {
  Reader reader(root, file);
  const auto restore = [&] {
    Restorer restorer(reader.before());
    visit(restorer);
  };
  try {
    visit(reader);
    reader.finish();
  } catch (...) {
    restore();
    throw;
  }
  restore();
  return reader.items();
}

}  // namespace trireme::config

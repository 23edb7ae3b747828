// Internal to framework/config*.cpp: the visitor that fills a schema's variables from a tree and lists what
// it saw.
#pragma once
#include "framework/config/tree.h"

#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

namespace trireme::config {

// One key of the schema, in schema order. Pointers are into the tree that was read.
struct Item {
  std::string path, key;
  std::size_t depth = 0;
  bool is_group = false;
  bool may_change = false;         // on resume
  std::string value;               // as YAML; empty for a group
  const Origin* origin = nullptr;  // null: the value is the default
  std::string allowed, doc;
};

using Value = std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>, std::vector<std::int64_t>,
                           std::vector<double>>;

class Reader : public Fields {
 public:
  // `root` outlives the reader; `file` is the place of errors that no line of a file causes.
  Reader(const Node& root, std::string file);
  void operator()(std::string_view key, bool& v, std::string_view doc) override;
  void operator()(std::string_view key, std::int64_t& v, std::string_view doc, Range<std::int64_t> r) override;
  void operator()(std::string_view key, double& v, std::string_view doc, Range<double> r) override;
  void operator()(std::string_view key, std::string& v, std::string_view doc) override;
  void operator()(std::string_view key, std::vector<std::string>& v, std::string_view doc) override;
  void operator()(std::string_view key, std::vector<std::int64_t>& v, std::string_view doc) override;
  void operator()(std::string_view key, std::vector<double>& v, std::string_view doc) override;
  void choice(std::string_view key, std::string& v, std::span<const std::string_view> words,
              std::string_view doc) override;
  void resume_may_change(bool on) override { levels_.back().may_change = on; }
  void require(bool ok, std::string_view key, std::string_view message, std::string_view cure) override;

  // Call after the visit: throws for keys that the schema lacks, then for the first failed requirement.
  void finish() const;
  const std::vector<Item>& items() const { return items_; }
  // The values that the variables held before they were read.
  const std::map<std::string, Value>& before() const { return before_; }

 protected:
  void begin(std::string_view key, std::string_view doc) override;
  void end() override { levels_.pop_back(); }

 private:
  struct Level {
    std::string path;
    const Node* node = nullptr;  // null: no key of this group is in the file
    bool may_change = false;
  };
  struct Failure {
    std::string where, what, cure;
  };
  template <class T, class Convert>
  void take(std::string_view key, T& v, std::string_view doc, const std::string& allowed, Convert convert);
  std::string enter(std::string_view key);
  void refuse_unknown(const Node& mapping, const std::string& path) const;
  [[noreturn]] void unknown(const Entry& entry, const std::string& path) const;

  std::string file_;
  std::vector<Level> levels_;
  std::vector<Item> items_;
  std::map<std::string, std::vector<std::string>> known_;  // group path -> its keys
  std::map<std::string, Value> before_;
  std::optional<Failure> failure_;
};

// Visits the schema with a Reader, finishes it, and puts the variables back as they were.
std::vector<Item> list_items(const Node& root, const std::string& file, const std::function<void(Fields&)>& visit);

}  // namespace trireme::config

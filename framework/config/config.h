// Typed configuration. A struct lists its keys once, in `void fields(Fields&)`; that one function parses,
// refuses unknown keys, checks ranges, prints, hashes and documents.
//
//   struct Model {
//     std::int64_t width = 192;
//     void fields(Fields& f) { f("width", width, "hidden size of the tower", {.min = 1}); }
//   };
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

template <class T>
struct Range {
  T min = std::numeric_limits<T>::lowest();  // inclusive
  T max = std::numeric_limits<T>::max();     // inclusive
};

// Visitor over keys. Implemented in config_read.cpp; recipes only call it.
class Fields {
 public:
  virtual ~Fields() = default;
  virtual void operator()(std::string_view key, bool& v, std::string_view doc) = 0;
  virtual void operator()(std::string_view key, std::int64_t& v, std::string_view doc, Range<std::int64_t> r = {}) = 0;
  // Doubles must be finite.
  virtual void operator()(std::string_view key, double& v, std::string_view doc, Range<double> r = {}) = 0;
  virtual void operator()(std::string_view key, std::string& v, std::string_view doc) = 0;
  virtual void operator()(std::string_view key, std::vector<std::string>& v, std::string_view doc) = 0;
  virtual void operator()(std::string_view key, std::vector<std::int64_t>& v, std::string_view doc) = 0;
  virtual void operator()(std::string_view key, std::vector<double>& v, std::string_view doc) = 0;
  // One of a fixed list of words.
  virtual void choice(std::string_view key, std::string& v, std::span<const std::string_view> words,
                      std::string_view doc) = 0;
  void choice(std::string_view key, std::string& v, std::initializer_list<std::string_view> words,
              std::string_view doc) {
    choice(key, v, std::span(words.begin(), words.size()), doc);
  }
  // A nested mapping.
  template <class T>
  void group(std::string_view key, T& sub, std::string_view doc) {
    begin(key, doc);
    sub.fields(*this);
    end();
  }
  // Marks the keys visited after this call, in this group, as free to change on resume (cadence, threads,
  // output).
  virtual void resume_may_change(bool on) = 0;
  // A check over several keys, run after all are read: `ok` false is an error at `key`, with this message.
  virtual void require(bool ok, std::string_view key, std::string_view message, std::string_view cure = {}) = 0;

 protected:
  virtual void begin(std::string_view key, std::string_view doc) = 0;
  virtual void end() = 0;
};

// A parsed file (`extends:` merged in, `key=value` overrides on top), each value with its origin.
class Config {
 public:
  // Values of overrides are YAML; a bare comma list is refused (it is a sweep of `submit`).
  // Throws UsageError "file:line:col: key.path: what; cure". Refuses duplicate keys, alias cycles, more than
  // 100,000 nodes, nesting deeper than 64, files over 1 MiB. `extends: other.yaml` (or a list) is relative to
  // the file.
  static Config load(const std::string& path, const std::vector<std::string>& overrides = {});
  static Config parse(std::string_view yaml, const std::string& file, const std::vector<std::string>& overrides = {});
  Config(Config&&) noexcept;
  Config& operator=(Config&&) noexcept;
  ~Config();

  // The string at a top-level key, before any schema is known (which recipe?). Throws when absent.
  std::string string_at(std::string_view key) const;
  // "file:line:col: data.path", to begin an error about that value (a file it names is missing, ...).
  std::string place(std::string_view dotted_key) const;
  // Reads every key of the schema `visit(fields)` into its variables; a key of the file that the schema lacks
  // is an error with the nearest known name. On an error the variables are half read.
  // A default that the schema itself refuses is an Error (bug).
  void read(const std::function<void(Fields&)>& visit) const;
  // The resolved YAML in schema order; with `origins`, each line ends in "# file:line", "# command line" or
  // "# default".
  std::string print(const std::function<void(Fields&)>& visit, bool origins) const;

 private:
  struct Impl;
  explicit Config(std::unique_ptr<Impl>);
  friend std::vector<std::string> differing_keys(const Config&, const Config&, const std::function<void(Fields&)>&);
  friend std::uint64_t config_hash(const Config&, const std::function<void(Fields&)>&);
  std::unique_ptr<Impl> impl_;
};

// Dotted keys whose values differ between two resolved configs, those marked resume_may_change left out.
// A key absent from both is compared by the value its variable holds, so let `visit` show a fresh schema.
// Like print, config_hash and document, this puts the variables back as they were.
std::vector<std::string> differing_keys(const Config& a, const Config& b, const std::function<void(Fields&)>& visit);
// 64-bit hash of all values that may not change on resume; equal on all ranks of a sane job.
std::uint64_t config_hash(const Config& c, const std::function<void(Fields&)>& visit);
// Markdown table of the schema: key, type, default, range, meaning.
std::string document(const std::function<void(Fields&)>& visit);

}  // namespace trireme

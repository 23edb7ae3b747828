// A regular expression over Unicode letters and numbers, by PCRE2. `\s` means Unicode's white space, as in Oniguruma.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace trireme {

// Immutable; any thread may search.
class Pattern {
 public:
  // DataError naming `where`: PCRE2 refuses the expression, or a build without it.
  Pattern(std::string_view expression, const std::string& where, bool caseless = false);

  // The first match at or after byte `from` as bytes [first, second) of `text`, which must be valid UTF-8; both npos:
  // none.
  std::pair<std::size_t, std::size_t> find(std::string_view text, std::size_t from) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace trireme

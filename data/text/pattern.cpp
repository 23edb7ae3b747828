#include "data/text/pattern.h"

#include "comm/error.h"

#include <new>

#ifdef TRIREME_HAS_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

namespace trireme {

#ifdef TRIREME_HAS_PCRE2
namespace {

// PCRE2's own \s counts U+180E, which is no white space since Unicode 6.3.
std::string with_unicode_space(std::string_view expression) {
  constexpr std::string_view space =
      R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i], next = i + 1 < expression.size() ? expression[i + 1] : '\0';
    if (c == '\\' && (next == 's' || (next == 'S' && !in_class))) {
      out += in_class ? std::string(space) : (next == 's' ? "[" : "[^") + std::string(space) + "]";
      ++i;
    } else if (c == '\\' && next) {
      out += c, out += next, ++i;
    } else {
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      out += c;
    }
  }
  return out;
}

template <class T, auto release>
struct Release {
  void operator()(T* p) const { release(p); }
};

}  // namespace

struct Pattern::Code {
  std::unique_ptr<pcre2_code, Release<pcre2_code, pcre2_code_free_8>> code;
};

Pattern::Pattern(std::string_view expression, const std::string& where, bool caseless) {
  const std::string text = with_unicode_space(expression);
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                   PCRE2_UTF | PCRE2_UCP | (caseless ? PCRE2_CASELESS : 0), &error, &at, nullptr);
  if (!code)
    throw DataError(where,
                    "the regular expression " + std::string(expression.substr(0, 200)) + " is refused: PCRE2 error " +
                        std::to_string(error),
                    "use a tokenizer of the families GPT-2, Qwen2 or Llama-3");
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // only faster: its failure changes nothing
  auto owner = std::make_shared<Code>();
  owner->code.reset(code);
  code_ = std::move(owner);
}

std::pair<std::size_t, std::size_t> Pattern::find(std::string_view text, std::size_t from) const {
  struct Match {  // one a thread: patterns without groups need no more than one pair
    std::unique_ptr<pcre2_match_data, Release<pcre2_match_data, pcre2_match_data_free_8>> data{
        pcre2_match_data_create(1, nullptr)};
  };
  thread_local const Match match;
  if (!match.data) throw std::bad_alloc();
  const int found = pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, match.data.get(), nullptr);
  if (found == PCRE2_ERROR_NOMATCH) return {text.npos, text.npos};
  if (found < 0)
    throw DataError(
        "tokenizer",
        "the split of a text of " + std::to_string(text.size()) + " bytes failed: PCRE2 error " + std::to_string(found),
        "cut the text into shorter documents");
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.data.get());
  return {span[0], span[1]};
}
#else
struct Pattern::Code {};
Pattern::Pattern(std::string_view, const std::string& where, bool) {
  throw DataError(where, "this build has no text tokenizer", "install libpcre2-dev and build again");
}
std::pair<std::size_t, std::size_t> Pattern::find(std::string_view, std::size_t) const { return {}; }
#endif

}  // namespace trireme

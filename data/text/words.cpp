#include "data/text/words.h"

#include "comm/error.h"

#include <memory>
#include <string>

#ifdef TRIREME_HAS_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

namespace trireme {

#ifdef TRIREME_HAS_PCRE2
namespace {

// The two marks, English clitics, letter runs, single digits, and runs of everything else but white space.
constexpr std::string_view pattern =
    R"(<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";

const pcre2_code* compiled() {
  static const std::unique_ptr<pcre2_code, decltype(&pcre2_code_free_8)> code = [] {
    int error = 0;
    PCRE2_SIZE at = 0;
    pcre2_code* c = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_CASELESS | PCRE2_NO_UTF_CHECK, &error, &at, nullptr);
    if (!c) throw Error(ExitCode::bug, "tokenizer", "PCRE2 refused the word pattern: error " + std::to_string(error));
    pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);  // only faster: its failure changes nothing
    return std::unique_ptr<pcre2_code, decltype(&pcre2_code_free_8)>(c, &pcre2_code_free_8);
  }();
  return code.get();
}

}  // namespace

void split_words(std::string_view text, const std::function<void(std::string_view)>& word) {
  const pcre2_code* code = compiled();
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free_8)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free_8);
  if (!match) throw std::bad_alloc();
  for (std::size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
                                  match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) throw Error(ExitCode::bug, "tokenizer", "PCRE2 failed with error " + std::to_string(found));
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
    word(text.substr(span[0], span[1] - span[0]));
    at = span[1];
  }
}
#else
void split_words(std::string_view, const std::function<void(std::string_view)>&) {
  throw DataError("tokenizer", "this build has no text tokenizer", "install libpcre2-dev and build again");
}
#endif

}  // namespace trireme

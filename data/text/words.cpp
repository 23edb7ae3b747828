#include "data/text/words.h"

#include "data/text/pattern.h"

#include <tuple>

namespace trireme {

void split_words(std::string_view text, const std::function<void(std::string_view)>& word) {
  // The two marks, English clitics, letter runs, single digits, and runs of everything else but white space.
  static const Pattern pattern(
      R"(<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)", "tokenizer", true);
  for (auto [first, last] = pattern.find(text, 0); first != text.npos; std::tie(first, last) = pattern.find(text, last))
    word(text.substr(first, last - first));
}

}  // namespace trireme

// CLIP's split of cleaned text into words, by its regular expression over Unicode letters and numbers.
#pragma once
#include <functional>
#include <string_view>

namespace trireme {

// Calls `word` for each piece in order. `text` must be valid UTF-8. Throws DataError in a build without
// PCRE2.
void split_words(std::string_view text, const std::function<void(std::string_view)>& word);

}  // namespace trireme

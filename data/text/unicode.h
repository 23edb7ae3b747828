// The Unicode operations that text cleaning needs, with the tables of one Unicode version.
#pragma once
#include <string>
#include <string_view>

namespace trireme {

// Full lower-casing of the default locale, final sigma included.
std::u32string lower(std::u32string_view text);

// Canonical composition (normalisation form C).
std::u32string nfc(std::u32string_view text);

// White space as in Python's str.split: Unicode's, plus U+001C to U+001F.
bool is_space(char32_t c);

// The harmless repairs that CLIP's tokenizers make before anything else: character references ended by ';'
// (unless the line has a '<'), curly quotes, ligatures, width forms, line breaks, terminal escapes, control
// characters, C1 bytes as Windows-1252, form C. Wrongly decoded text ("Ã©" for "é") is left as it is.
std::u32string repair_text(std::u32string_view text);

}  // namespace trireme

// The data set `emoji`: glyphs of Noto Color Emoji, described by the English annotations of the Unicode CLDR.
#pragma once
#include "data/image_text/prepared.h"

#include <map>
#include <string>
#include <string_view>

namespace trireme {

struct Annotation {
  std::string name;                   // "grinning face"
  std::vector<std::string> keywords;  // file order
};

// By character or sequence (UTF-8). Tolerant: broken markup gives the entries before it; `whole` (may be null) says
// whether the text was read to the end of its <ldml>.
std::map<std::string, Annotation> read_annotations(std::string_view xml, bool* whole = nullptr);

inline constexpr const char* emoji_font = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf";

// One item for each single character that has a glyph and a name; the caption is the name and up to four
// keywords that add words. The class is the glyph's most widespread keyword ("face", "flag", ...), "other"
// below 8 glyphs. Missing packages: DataError with the apt-get line.
PrepareSpec emoji(const std::string& font = emoji_font,
                  const std::string& annotations = "/usr/share/unicode/cldr/common/annotations/en.xml");

}  // namespace trireme

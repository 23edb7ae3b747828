#include "data/image_text/emoji.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/captions.h"
#include "data/text/text.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>
#include <set>

#ifdef TRIREME_HAS_FREETYPE
#include <ft2build.h>
#include FT_FREETYPE_H
#endif

namespace trireme {
namespace {

constexpr std::string_view packages = "apt-get install fonts-noto-color-emoji unicode-cldr-core";

std::string trim(std::string_view s) {
  const auto first = s.find_first_not_of(" \t\r\n");
  if (first == s.npos) return {};
  return std::string(s.substr(first, s.find_last_not_of(" \t\r\n") + 1 - first));
}

std::string attribute(std::string_view tag, std::string_view name) {
  const std::string key = " " + std::string(name) + "=\"";
  const auto at = tag.find(key);
  if (at == tag.npos) return {};
  const auto start = at + key.size(), end = tag.find('"', start);
  return end == tag.npos ? std::string() : html_unescape(tag.substr(start, end - start));
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& w : words) out += (out.empty() ? "" : " ") + w;
  return out;
}

#ifdef TRIREME_HAS_FREETYPE
// FreeType faces are not thread safe: one lock for all glyphs.
class Font {
 public:
  explicit Font(const std::string& path) : path_(path) {
    if (FT_Init_FreeType(&library_)) throw std::bad_alloc();
    if (FT_New_Face(library_, path.c_str(), 0, &face_)) {
      FT_Done_FreeType(library_);
      throw DataError(path, "no readable font", packages);
    }
    if (face_->num_fixed_sizes < 1 || FT_Select_Size(face_, 0)) {
      FT_Done_Face(face_);
      FT_Done_FreeType(library_);
      throw DataError(path, "the font has no colour bitmaps", packages);
    }
  }
  ~Font() {
    FT_Done_Face(face_);
    FT_Done_FreeType(library_);
  }
  Font(const Font&) = delete;
  Font& operator=(const Font&) = delete;

  bool has(char32_t c) const { return FT_Get_Char_Index(face_, c) != 0; }

  Image glyph(char32_t c, const std::string& name) {
    std::lock_guard lock(mutex_);
    const FT_UInt index = FT_Get_Char_Index(face_, c);
    if (FT_Load_Glyph(face_, index, FT_LOAD_COLOR) || face_->glyph->bitmap.pixel_mode != FT_PIXEL_MODE_BGRA)
      throw DataError(path_, "no colour glyph for " + name, packages);
    const FT_Bitmap& b = face_->glyph->bitmap;
    const int width = int(b.width), height = int(b.rows);
    if (width == 0 || height == 0) throw DataError(path_, "empty glyph for " + name, packages);
    Image out{width, height, std::vector<std::uint8_t>(std::size_t(width) * height * 3)};
    for (int y = 0; y < height; ++y) {
      const std::uint8_t* p = b.buffer + std::ptrdiff_t(y) * b.pitch;
      for (int x = 0; x < width; ++x, p += 4)  // blue, green, red already multiplied by alpha
        for (int k = 0; k < 3; ++k)
          out.rgb[(std::size_t(y) * width + x) * 3 + k] = std::uint8_t(std::min(255, p[2 - k] + 255 - p[3]));
    }
    return out;
  }

 private:
  std::string path_;
  FT_Library library_ = nullptr;
  FT_Face face_ = nullptr;
  std::mutex mutex_;
};

// The name and up to four keywords that add words; the class is the most widespread keyword.
PrepareItem described(const Annotation& a, const std::map<std::string, int>& widespread) {
  const auto head = caption_words(a.name);
  std::set<std::string> used(head.begin(), head.end());
  std::string caption = join(head), category = "other";
  int added = 0, most = 7;
  for (const auto& k : a.keywords) {
    const auto words = caption_words(k);
    const std::string phrase = join(words);
    if (phrase.empty()) continue;
    const auto known = widespread.find(phrase);
    const int count = known == widespread.end() ? 0 : known->second;
    if (count > most || (count == most && category != "other" && phrase < category)) most = count, category = phrase;
    if (added == 4 || std::all_of(words.begin(), words.end(), [&](const auto& w) { return used.contains(w); }))
      continue;
    used.insert(words.begin(), words.end());
    caption += ", " + phrase;
    ++added;
  }
  return {a.name, caption, category};
}
#endif

}  // namespace

std::map<std::string, Annotation> read_annotations(std::string_view xml, bool* whole) {
  std::map<std::string, Annotation> out;
  bool broken = xml.find("</ldml>") == xml.npos;
  constexpr std::string_view open = "<annotation ";
  for (std::size_t at = xml.find(open); at != xml.npos; at = xml.find(open, at)) {
    const auto tag_end = xml.find('>', at), close = xml.find("</annotation>", at);
    if (tag_end == xml.npos || close == xml.npos || close < tag_end) {
      broken = true;
      break;
    }
    const std::string_view tag = xml.substr(at, tag_end - at);
    const std::string text = html_unescape(xml.substr(tag_end + 1, close - tag_end - 1)), cp = attribute(tag, "cp");
    at = close;
    if (cp.empty()) continue;
    Annotation& a = out[cp];
    if (attribute(tag, "type") == "tts") {
      a.name = trim(text);
      continue;
    }
    for (std::size_t i = 0; i <= text.size();) {
      const auto bar = std::min(text.find('|', i), text.size());
      if (std::string k = trim(std::string_view(text).substr(i, bar - i)); !k.empty())
        a.keywords.push_back(std::move(k));
      i = bar + 1;
    }
  }
  if (whole) *whole = !broken;
  return out;
}

PrepareSpec emoji(const std::string& font_path, const std::string& annotation_path) {
#ifdef TRIREME_HAS_FREETYPE
  for (const auto& path : {font_path, annotation_path})
    if (!std::filesystem::exists(path)) throw DataError(path, "no such file", packages);
  const auto bytes = read_file(annotation_path, 1 << 26);
  bool whole = true;
  const auto annotations = read_annotations({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, &whole);
  auto font = std::make_shared<Font>(font_path);

  PrepareSpec spec;
  spec.name = "emoji";
  spec.source = real_path(font_path);
  if (!whole)
    spec.notes.push_back(annotation_path + " is broken: only the " + std::to_string(annotations.size()) +
                         " characters before that place are used");
  auto characters = std::make_shared<std::vector<char32_t>>();
  std::int64_t sequences = 0, without_glyph = 0;
  std::map<std::string, int> widespread;
  std::vector<const Annotation*> chosen;
  for (const auto& [cp, a] : annotations) {
    std::u32string text = decode_utf8(cp);
    if (text.size() == 2 && text[1] == 0xFE0F) text.pop_back();  // only asks for the colour form
    if (text.size() != 1) {
      ++sequences;
    } else if (a.name.empty() || text[0] < 0xA0 || !font->has(text[0])) {
      ++without_glyph;
    } else {
      characters->push_back(text[0]);
      chosen.push_back(&a);
      for (const auto& k : a.keywords) ++widespread[join(caption_words(k))];
    }
  }
  for (const Annotation* a : chosen) spec.items.push_back(described(*a, widespread));
  spec.decode = [font, characters](std::size_t i) {
    const char32_t c = characters->at(i);
    return font->glyph(c, encode_utf8(std::u32string_view(&c, 1)));
  };
  spec.notes.push_back(std::to_string(sequences) + " sequences and " + std::to_string(without_glyph) +
                       " annotated characters without a glyph are not used");
  return spec;
#else
  (void)font_path, (void)annotation_path;
  throw DataError("emoji", "this build draws no glyphs", "install libfreetype-dev and build again");
#endif
}

}  // namespace trireme

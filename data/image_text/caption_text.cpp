#include "data/image_text/caption_text.h"

#include "data/text/text.h"
#include "data/text/unicode.h"

#include <algorithm>

namespace trireme {

std::string clean_caption(std::string_view utf8, bool& cut) {
  std::u32string out;
  bool gap = false;
  for (char32_t c : decode_utf8(utf8)) {
    if (is_space(c) || c < 0x20 || c == 0x7F) {
      gap = !out.empty();
      continue;
    }
    if (out.size() + gap >= max_caption_characters) {
      cut = true;
      break;
    }
    if (gap) out += U' ';
    gap = false;
    out += c;
  }
  return encode_utf8(out);
}

std::string caption_of(std::string_view bytes) {
  const auto text = decode_text(bytes);
  bool cut = false;
  return text ? clean_caption(text->text, cut) : std::string();
}

std::uint32_t caption_draw(std::string_view caption) {
  // FNV-1a and a last stir: it decides every split, so it stays as it is. Thousandths come first: prepared files of
  // all versions hold out h % 1000 < 100.
  std::uint64_t h = 0xcbf29ce484222325ull;
  for (const unsigned char c : caption) h = (h ^ c) * 0x100000001b3ull;
  h ^= h >> 33, h *= 0xff51afd7ed558ccdull, h ^= h >> 33;
  const std::uint64_t fine = h / 1000 % 1048576;
  return std::uint32_t(((h % 1000 * 1048576 + fine) << 12) / 1000);
}

std::uint64_t held_out_draw(double share) { return std::uint64_t(std::clamp(share, 0.0, 1.0) * 0x1p32); }

}  // namespace trireme

#include "data/text/text.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

namespace trireme {
namespace {

constexpr char32_t replacement = 0xFFFD;

// Length of the valid sequence at `i`, or 0; `c` is its character.
std::size_t sequence(std::string_view s, std::size_t i, char32_t& c) {
  const auto byte = [&](std::size_t k) { return std::uint8_t(s[i + k]); };
  const std::uint8_t b = byte(0);
  if (b < 0x80) {
    c = b;
    return 1;
  }
  const std::size_t n = b >= 0xC2 && b < 0xE0 ? 2 : b >= 0xE0 && b < 0xF0 ? 3 : b >= 0xF0 && b < 0xF5 ? 4 : 0;
  if (n == 0 || i + n > s.size()) return 0;
  c = b & (0xFF >> (n + 1));
  for (std::size_t k = 1; k < n; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return 0;
    c = c << 6 | (byte(k) & 0x3F);
  }
  const bool overlong = (n == 3 && c < 0x800) || (n == 4 && c < 0x10000);
  return overlong || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF ? 0 : n;
}

struct Entity {
  std::string_view name, value;
};
constexpr Entity entities[] = {
#include "data/text/html_entities.inc"
};

const Entity* find_entity(std::string_view name) {
  const auto* it = std::lower_bound(std::begin(entities), std::end(entities), name,
                                    [](const Entity& e, std::string_view n) { return e.name < n; });
  return it != std::end(entities) && it->name == name ? it : nullptr;
}

// What browsers read for the C1 numbers: Windows-1252.
constexpr std::array<char32_t, 32> windows_1252 = {0x20AC, 0x81,   0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                                   0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,   0x017D, 0x8F,
                                                   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                                   0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D,   0x017E, 0x0178};

void append_numeric(std::string& out, std::uint32_t n) {
  if (n == 0 || (n >= 0xD800 && n < 0xE000) || n > 0x10FFFF) return append_utf8(out, replacement);
  if (n >= 0x80 && n < 0xA0) return append_utf8(out, windows_1252[n - 0x80]);
  const bool dropped = (n < 0x20 && n != '\t' && n != '\n' && n != '\r' && n != '\f') || n == 0x7F ||
                       (n >= 0xFDD0 && n < 0xFDF0) || (n & 0xFFFE) == 0xFFFE;
  if (!dropped) append_utf8(out, n);
}

int digit(char c, int base) {
  const int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : 99;
  return d < base ? d : -1;
}

// Consumes the reference at text[i] == '&' and returns the position after it; i when it is none.
std::size_t reference(std::string_view text, std::size_t i, std::string& out) {
  std::size_t p = i + 1;
  if (p < text.size() && text[p] == '#') {
    const bool hex = ++p < text.size() && (text[p] == 'x' || text[p] == 'X');
    const int base = hex ? 16 : 10;
    if (hex) ++p;
    std::uint32_t n = 0;
    const std::size_t digits = p;
    for (; p < text.size() && digit(text[p], base) >= 0; ++p)
      n = std::min<std::uint32_t>(n * base + digit(text[p], base), 0x110000);
    if (p == digits) return i;
    append_numeric(out, n);
    return p < text.size() && text[p] == ';' ? p + 1 : p;
  }
  const std::size_t start = p;
  constexpr std::string_view ends("\t\n\f <&#;");
  std::size_t count = 0;
  while (p < text.size() && ends.find(text[p]) == ends.npos && count < 32) {
    ++p;
    while (p < text.size() && (text[p] & 0xC0) == 0x80) ++p;
    ++count;
  }
  if (p == start) return i;
  if (p < text.size() && text[p] == ';')
    if (const Entity* e = find_entity(text.substr(start, p + 1 - start))) {
      out += e->value;
      return p + 1;
    }
  for (std::size_t end = p; end >= start + 2; --end)
    if (const Entity* e = find_entity(text.substr(start, end - start))) {
      out += e->value;
      return end;
    }
  return i;
}

// Plain letters for U+00C0..U+017F, two characters where one is not enough.
constexpr std::string_view plain[] = {
    "A", "A", "A",  "A", "A", "A", "AE", "C",  "E", "E", "E",  "E",  "I", "I", "I",  "I",  "D", "N", "O",  "O",
    "O", "O", "O",  " ", "O", "U", "U",  "U",  "U", "Y", "TH", "ss", "a", "a", "a",  "a",  "a", "a", "ae", "c",
    "e", "e", "e",  "e", "i", "i", "i",  "i",  "d", "n", "o",  "o",  "o", "o", "o",  " ",  "o", "u", "u",  "u",
    "u", "y", "th", "y", "A", "a", "A",  "a",  "A", "a", "C",  "c",  "C", "c", "C",  "c",  "C", "c", "D",  "d",
    "D", "d", "E",  "e", "E", "e", "E",  "e",  "E", "e", "E",  "e",  "G", "g", "G",  "g",  "G", "g", "G",  "g",
    "H", "h", "H",  "h", "I", "i", "I",  "i",  "I", "i", "I",  "i",  "I", "i", "IJ", "ij", "J", "j", "K",  "k",
    "k", "L", "l",  "L", "l", "L", "l",  "L",  "l", "L", "l",  "N",  "n", "N", "n",  "N",  "n", "n", "N",  "n",
    "O", "o", "O",  "o", "O", "o", "OE", "oe", "R", "r", "R",  "r",  "R", "r", "S",  "s",  "S", "s", "S",  "s",
    "S", "s", "T",  "t", "T", "t", "T",  "t",  "U", "u", "U",  "u",  "U", "u", "U",  "u",  "U", "u", "U",  "u",
    "W", "w", "Y",  "y", "Y", "Z", "z",  "Z",  "z", "Z", "z",  "s"};
static_assert(std::size(plain) == 0x180 - 0xC0);

// None when a surrogate lacks its other half, a byte is left over, or a zero is in it.
std::optional<std::string> decode_utf16(std::string_view bytes, bool little) {
  if (bytes.size() % 2) return {};
  const auto unit = [&](std::size_t i) {
    const auto a = std::uint8_t(bytes[i]), b = std::uint8_t(bytes[i + 1]);
    return char32_t(little ? a | b << 8 : a << 8 | b);
  };
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    char32_t c = unit(i);
    if (c >= 0xD800 && c < 0xE000) {
      const char32_t low = c < 0xDC00 && i + 2 < bytes.size() ? unit(i + 2) : 0;
      if (low < 0xDC00 || low >= 0xE000) return {};
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
      i += 2;
    }
    if (c == 0) return {};
    append_utf8(out, c);
  }
  return out;
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  std::u32string out;
  out.reserve(bytes.size());
  for (std::size_t i = 0; i < bytes.size();) {
    char32_t c = replacement;
    const std::size_t n = sequence(bytes, i, c);
    out.push_back(n ? c : replacement);
    i += n ? n : 1;
  }
  return out;
}

bool valid_utf8(std::string_view bytes) {
  char32_t c;
  for (std::size_t i = 0, n; i < bytes.size(); i += n)
    if ((n = sequence(bytes, i, c)) == 0) return false;
  return true;
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  }
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char32_t c : text) append_utf8(out, c);
  return out;
}

std::string utf8_or_latin1(std::string_view bytes) {
  if (valid_utf8(bytes)) return std::string(bytes);
  std::string out;
  for (unsigned char b : bytes) append_utf8(out, b);
  return out;
}

std::optional<DecodedText> decode_text(std::string_view bytes) {
  const bool little = bytes.starts_with("\xFF\xFE");
  if (little || bytes.starts_with("\xFE\xFF")) {
    auto text = decode_utf16(bytes.substr(2), little);
    if (!text) return {};
    return DecodedText{std::move(*text), Encoding::utf16};
  }
  if (bytes.find('\0') != bytes.npos) return {};
  if (!valid_utf8(bytes)) return DecodedText{utf8_or_latin1(bytes), Encoding::latin1};
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.remove_prefix(3);
  return DecodedText{std::string(bytes), Encoding::utf8};
}

std::string html_unescape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '&') {
      const std::size_t next = reference(text, i, out);
      if (next != i) {
        i = next;
        continue;
      }
    }
    out += text[i++];
  }
  return out;
}

std::string fold_latin(std::string_view utf8) {
  std::string out;
  for (char32_t c : decode_utf8(utf8)) {
    if (c < 0x80)
      out += char(c);
    else if (c >= 0xC0 && c < 0x180)
      out += plain[c - 0xC0];
    else if (c == 0x2019)
      out += '\'';
    else
      out += ' ';
  }
  return out;
}

}  // namespace trireme

// Unicode helpers for captions and the tokenizer.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

// Malformed UTF-8 (overlong, surrogates, cut sequences) becomes U+FFFD, one per rejected byte.
std::u32string decode_utf8(std::string_view bytes);
bool valid_utf8(std::string_view bytes);
void append_utf8(std::string& out, char32_t c);
std::string encode_utf8(std::u32string_view text);

// UTF-8 if the bytes are valid UTF-8, else each byte is a Latin-1 character.
std::string utf8_or_latin1(std::string_view bytes);

// How a user's text was written.
enum class Encoding { utf8, utf16, latin1 };
struct DecodedText {
  std::string text;  // UTF-8 without a byte order mark
  Encoding encoding = Encoding::utf8;
};
// UTF-16 is known by its byte order mark; what is no UTF-8 is taken for Latin-1. None for what is no text in any of
// the three: zero bytes, broken UTF-16.
std::optional<DecodedText> decode_text(std::string_view bytes);

// Character references of the HTML standard (named, decimal, hexadecimal), once, with the rules of Python's
// html.unescape: names without ';' match their longest known prefix, unknown ones stay.
std::string html_unescape(std::string_view text);

// Accented Latin letters to plain ones ("é" to "e", "ß" to "ss"), ASCII unchanged, everything else to a
// space.
std::string fold_latin(std::string_view utf8);

}  // namespace trireme

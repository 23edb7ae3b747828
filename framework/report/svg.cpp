#include "framework/report/svg.h"

#include <array>
#include <cstdarg>
#include <cstdio>

namespace trireme::svg {

std::string print(const char* format, ...) {
  std::array<char, 512> text;
  va_list args;
  va_start(args, format);
  std::vsnprintf(text.data(), text.size(), format, args);
  va_end(args);
  return text.data();
}

std::size_t length(std::string_view s) {
  return std::size_t(std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string shortened(const std::string& s, std::size_t characters) {
  if (length(s) <= characters) return s;
  std::size_t end = 0;
  for (std::size_t n = 0; end < s.size(); ++end)
    if ((s[end] & 0xc0) != 0x80 && ++n == characters) break;
  return s.substr(0, end) + "…";
}

std::string open_svg(const std::string& title, int width, int height) {
  return print("<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", width, height) + escape_html(title) + "\">";
}

}  // namespace trireme::svg

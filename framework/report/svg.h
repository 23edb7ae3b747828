// What the sources of the charts share: pieces of SVG text.
#pragma once
#include "framework/report/chart.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace trireme::svg {

constexpr double character = 7.5;  // mean width of a bold 12 px letter in the widest of the fonts

__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...);  // at most 511 bytes
std::size_t length(std::string_view);                                              // characters, not bytes
std::string shortened(const std::string&, std::size_t characters);                 // ends in "…" where it was longer
std::string open_svg(const std::string& title, int width, int height);

}  // namespace trireme::svg

#pragma once
#include <string>
#include <vector>

namespace trireme {

// Lines are ended by \n, \r or both; the last one also by the end of the text.
std::vector<std::string> lines_of(const std::string& text);

}  // namespace trireme

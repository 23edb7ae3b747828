#include "comm/error.h"

namespace trireme {
namespace {

// One line whatever the parts hold: control characters would break the log and the terminal.
std::string one_line(std::string_view where, std::string_view what, std::string_view cure) {
  std::string line;
  if (!where.empty()) line.append(where).append(": ");
  line.append(what);
  if (!cure.empty()) line.append("; ").append(cure);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return line;
}

}  // namespace

Error::Error(ExitCode code, std::string_view where, std::string_view what, std::string_view cure)
    : std::runtime_error(one_line(where, what, cure)), code_(code) {}

}  // namespace trireme

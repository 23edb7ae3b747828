// The libraries that a build of data/ may lack, and what it then cannot do.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Library {
  std::string_view name;     // "PNG", "JPEG", "WebP", "FreeType", "PCRE2", "zlib"
  bool present;              // in this build
  std::string_view without;  // "no PNG pictures"
  std::string_view package;  // Debian's
};

const std::vector<Library>& libraries();

// Empty when this build has them all, else why not: "built without JPEG (libturbojpeg0-dev)".
std::string missing_libraries(std::initializer_list<std::string_view> names);

}  // namespace trireme

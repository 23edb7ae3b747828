#include "data/libraries.h"

#include <algorithm>

namespace trireme {

const std::vector<Library>& libraries() {
#ifdef TRIREME_HAS_PNG
  constexpr bool png = true;
#else
  constexpr bool png = false;
#endif
#ifdef TRIREME_HAS_TURBOJPEG
  constexpr bool jpeg = true;
#else
  constexpr bool jpeg = false;
#endif
#ifdef TRIREME_HAS_FREETYPE
  constexpr bool freetype = true;
#else
  constexpr bool freetype = false;
#endif
#ifdef TRIREME_HAS_PCRE2
  constexpr bool pcre2 = true;
#else
  constexpr bool pcre2 = false;
#endif
#ifdef TRIREME_HAS_ZLIB
  constexpr bool zlib = true;
#else
  constexpr bool zlib = false;
#endif
#ifdef TRIREME_HAS_WEBP
  constexpr bool webp = true;
#else
  constexpr bool webp = false;
#endif
  static const std::vector<Library> all = {
      {"PNG", png, "no PNG pictures", "libpng-dev"},
      {"JPEG", jpeg, "no JPEG pictures", "libturbojpeg0-dev"},
      {"WebP", webp, "no WebP pictures", "libwebp-dev"},
      {"FreeType", freetype, "no emoji data set", "libfreetype-dev"},
      {"PCRE2", pcre2, "no text tokenizer: no CLIP, no language models", "libpcre2-dev"},
      {"zlib", zlib, "no gzip", "zlib1g-dev"}};
  return all;
}

std::string missing_libraries(std::initializer_list<std::string_view> names) {
  std::string why;
  for (const auto& library : libraries())
    if (!library.present && std::find(names.begin(), names.end(), library.name) != names.end())
      why += (why.empty() ? "built without " : ", ") + std::string(library.name) + " (" + std::string(library.package) +
             ")";
  return why;
}

}  // namespace trireme

#include "data/image_text/webp.h"

#include "comm/error.h"
#include "data/libraries.h"

#include <cstring>

#ifdef TRIREME_HAS_WEBP
#include <webp/decode.h>
#endif

namespace trireme {

bool is_webp(std::span<const std::uint8_t> bytes) {
  return bytes.size() >= 12 && std::memcmp(bytes.data(), "RIFF", 4) == 0 &&
         std::memcmp(bytes.data() + 8, "WEBP", 4) == 0;
}

bool build_reads_webp() { return missing_libraries({"WebP"}).empty(); }

Image decode_webp(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits) {
#ifdef TRIREME_HAS_WEBP
  int width = 0, height = 0;
  if (!WebPGetInfo(bytes.data(), bytes.size(), &width, &height) || width <= 0 || height <= 0)
    throw BrokenPicture(name, "corrupt WebP", "remove the file or replace it");
  if (width > limits.max_pixels / height)
    throw BrokenPicture(name,
                        "image of " + std::to_string(width) + " x " + std::to_string(height) +
                            " pixels is above the limit of " + std::to_string(limits.max_pixels),
                        "make it smaller");
  std::vector<std::uint8_t> rgba(std::size_t(width) * std::size_t(height) * 4);
  if (!WebPDecodeRGBAInto(bytes.data(), bytes.size(), rgba.data(), rgba.size(), width * 4))
    throw BrokenPicture(name, "corrupt WebP", "remove the file or replace it");
  return over_white(std::move(rgba), width, height);
#else
  (void)bytes, (void)limits;
  throw DataError(name, "this build reads no WebP", "install libwebp-dev and build again");
#endif
}

}  // namespace trireme

// RGB to JPEG.
#pragma once
#include "data/image_text/images.h"

namespace trireme {

// 4:2:0, quality 1 to 100. DataError where this build has no JPEG.
std::vector<std::uint8_t> encode_jpeg(const Image& image, int quality = 90);

}  // namespace trireme

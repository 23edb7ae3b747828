// WebP, in builds that have libwebp.
#pragma once
#include "data/image_text/images.h"

namespace trireme {

bool is_webp(std::span<const std::uint8_t> bytes);
bool build_reads_webp();

// As decode_image(): transparency over white; BrokenPicture for a bad file, DataError without libwebp.
Image decode_webp(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits);

}  // namespace trireme

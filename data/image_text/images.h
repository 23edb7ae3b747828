// PNG and JPEG files to RGB, and the resize that prepares them. Input may be hostile: any bad file throws
// BrokenPicture naming it, and nothing is allocated beyond the limits.
#pragma once
#include "comm/error.h"

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Image {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // height x width x 3, row-major
};

// This one picture is of no use; others may be.
struct BrokenPicture : DataError {
  using DataError::DataError;
};

struct ImageLimits {
  std::int64_t max_pixels = std::int64_t(1) << 26;
  std::int64_t max_file_bytes = std::int64_t(1) << 28;
};

// Asked once the size of a JPEG is known: the least factor in (0, 1] it may be decoded at. Of 1/8, 1/4, 1/2 and 1 (the
// others have no vector code in libjpeg-turbo) the smallest that is no less is taken. Empty: 1.
using Shrink = std::function<double(int width, int height)>;

// A decoded picture, perhaps at a fraction of the size that is on record.
struct Picture {
  int width = 0,
      height = 0;  // as the file says: crops are chosen in these pixels, so that they do not depend on scaling
  Image pixels;    // the whole picture, of pixels.width x pixels.height: a factor of the above, rounded up
};

// Transparency is composited over white; palette, grey and 16-bit images become 8-bit RGB. `name` is for
// messages. Thread safe.
Picture decode_picture(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits = {},
                       const Shrink& shrink = {});
// Whole.
Image decode_image(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits = {});
Image load_image(const std::string& path, const ImageLimits& limits = {});

// The longer side becomes `size`; the rest of the square is white. Returns planes [3, size, size].
std::vector<std::uint8_t> fit_square(const Image& in, int size);

// RGBA pixels, height x width x 4, over white.
Image over_white(std::vector<std::uint8_t> rgba, int width, int height);

}  // namespace trireme

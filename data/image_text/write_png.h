// Pictures as PNG files, and several frames of one as APNG, which every browser plays.
#pragma once
#include "data/image_text/images.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trireme {

// Chunks iTXt: UTF-8 of any length, under a key of 1 to 79 Latin letters.
using PngTexts = std::vector<std::pair<std::string, std::string>>;

// 8-bit RGB, without loss; the same bytes for the same input. Frames (at least one) have one size; more than one are
// shown in turn, `fps` a second, for ever. Without zlib the pixels are stored as they are.
std::vector<std::uint8_t> encode_png(std::span<const Image> frames, const PngTexts& texts = {}, double fps = 8);

// The texts of a PNG file that encode_png wrote; others' compressed ones are left out. DataError naming `path`.
PngTexts png_texts(std::span<const std::uint8_t> bytes, const std::string& path);

// The frames of such a file, one of a still picture, each decoded when it is asked for and not kept: a video may be
// longer than memory. `bytes` must outlive it.
class PngFrames {
 public:
  PngFrames(std::span<const std::uint8_t> bytes, std::string path);  // DataError naming `path`
  std::int64_t size() const { return std::int64_t(frames_.size()); }
  Image read(std::int64_t i) const;  // BrokenPicture, DataError. Any thread

 private:
  std::string path_;
  std::string_view header_;
  std::vector<std::vector<std::string_view>> frames_;  // pieces of each one's pixels
};

}  // namespace trireme

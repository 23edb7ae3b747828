// Pictures as PNG files, and several frames of one as APNG, which every browser plays.
#pragma once
#include "data/image_text/images.h"

#include <span>
#include <string>
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

// All frames of such a file, one of a still picture. BrokenPicture, DataError naming `path`.
std::vector<Image> png_frames(std::span<const std::uint8_t> bytes, const std::string& path);

}  // namespace trireme

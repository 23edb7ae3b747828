#include "data/image_text/images.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/resize.h"
#include "data/rng.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

namespace {

using namespace trireme;
namespace fs = std::filesystem;

using trireme::test::Bytes;
using trireme::test::PngForm;

constexpr int width = 23, height = 17;
constexpr std::pair<int, int> forms[] = {{0, 1},  {0, 2}, {0, 4},  {0, 8}, {0, 16}, {4, 8}, {4, 16}, {2, 8},
                                         {2, 16}, {6, 8}, {6, 16}, {3, 1}, {3, 2},  {3, 4}, {3, 8}};

// Pseudo-random samples; a palette has transparent entries.
Bytes make_png(int color, int depth, bool interlaced, std::vector<int>& samples) {
  PngForm f{color, depth, interlaced, {}, {}};
  if (color == 3)
    for (int i = 0; i < 1 << depth; ++i) {
      for (int v : {i * 7, 255 - i, i * 3}) f.palette.push_back(std::uint8_t(v));
      f.alpha.push_back(std::uint8_t(i * 5));
    }
  Rng rng(1, "png", std::uint64_t(color), std::uint64_t(depth));
  samples.clear();
  for (int i = 0; i < width * height * trireme::test::channels(color); ++i)
    samples.push_back(int(rng.below(std::uint64_t(1) << depth)));
  return trireme::test::write_png(f, width, height, samples);
}

Bytes gradient_jpeg() {  // 160 x 80: red grows to the right, green downwards, blue is 100
  return read_file(trireme::test::reference_file("gradient.jpg"), 1 << 20);
}

TEST(Images, EveryPngForm) {
  TRIREME_NEEDS("PNG");
  for (const auto& [color, depth] : forms)
    for (bool interlaced : {false, true}) {
      std::vector<int> samples;
      const Image image = decode_image(make_png(color, depth, interlaced, samples), "made.png");
      ASSERT_EQ(image.width, width);
      ASSERT_EQ(image.height, height);
      const double top = (1 << depth) - 1;
      const int channels = trireme::test::channels(color);
      for (int i = 0; i < width * height; ++i) {
        double rgb[3], a = 1;
        const int* s = samples.data() + i * channels;
        if (color == 3) {
          rgb[0] = std::uint8_t(s[0] * 7), rgb[1] = 255 - s[0], rgb[2] = std::uint8_t(s[0] * 3);
          a = std::uint8_t(s[0] * 5) / 255.0;
        } else {
          for (int c = 0; c < 3; ++c) rgb[c] = s[channels >= 3 ? c : 0] / top * 255;
          if (channels == 2 || channels == 4) a = s[channels - 1] / top;
        }
        for (int c = 0; c < 3; ++c)  // 16-bit colour and alpha are each rounded to 8 bits first
          ASSERT_NEAR(image.rgb[3 * i + c], rgb[c] * a + 255 * (1 - a), depth == 16 ? 1.51 : 0.51)
              << color << " " << depth;
      }
    }
}

TEST(Images, Jpeg) {
  TRIREME_NEEDS("JPEG");
  const Bytes file = gradient_jpeg();
  const Image full = decode_image(file, "a.jpg");
  ASSERT_EQ(full.width, 160);
  ASSERT_EQ(full.height, 80);
  for (int x : {0, 80, 159})
    for (int y : {0, 40, 79}) {
      EXPECT_NEAR(full.rgb[(y * 160 + x) * 3], x * 255 / 159, 6);
      EXPECT_NEAR(full.rgb[(y * 160 + x) * 3 + 1], y * 255 / 79, 6);
      EXPECT_NEAR(full.rgb[(y * 160 + x) * 3 + 2], 100, 6);
    }
  // Of 1/8, 1/4, 1/2 and 1 the smallest factor that is no less than asked for; the size on record stays.
  for (const auto& [least, width] : {std::pair{0.5, 80}, {0.51, 160}, {0.2, 40}, {0.01, 20}, {1.0, 160}, {2.0, 160}}) {
    const Picture small = decode_picture(file, "a.jpg", {}, [&](int w, int h) {
      EXPECT_EQ(w, 160);
      EXPECT_EQ(h, 80);
      return least;
    });
    EXPECT_EQ(small.pixels.width, width) << least;
    EXPECT_EQ(small.pixels.height, width / 2) << least;
    EXPECT_EQ(small.width, 160);
    EXPECT_EQ(small.height, 80);
    EXPECT_NEAR(small.pixels.rgb[0], 0, 16);
    EXPECT_NEAR(small.pixels.rgb[3 * (width - 1)], 255, 16);
  }
  EXPECT_THROW(decode_image(std::span(file).first(file.size() / 2), "half.jpg"), DataError);
  EXPECT_THROW(decode_image(file, "a.jpg", {.max_pixels = 100}), DataError);
}

// Truncated and flipped files either decode or throw DataError; the sanitizers see the rest.
TEST(Images, MutatedFilesNeverCrash) {
  TRIREME_NEEDS("PNG", "JPEG");
  Rng rng(5, "mutate");
  int refused = 0;
  for (int round = 0; round < 500; ++round) {
    std::vector<int> samples;
    const auto [color, depth] = forms[round % std::size(forms)];
    Bytes file = round % 10 == 9 ? gradient_jpeg() : make_png(color, depth, round % 2, samples);
    if (round % 3 == 0) {
      file.resize(rng.below(file.size()));
    } else {
      for (int flips = 1 + int(rng.below(6)); flips > 0; --flips)
        file[rng.below(file.size())] ^= std::uint8_t(1 << rng.below(8));
      if (round % 3 == 2 && file[0] == 0x89) {  // repair the header's checksum, so that the damage goes deeper
        const std::uint32_t crc = trireme::test::crc32(file.data() + 12, 17);
        for (int i = 0; i < 4; ++i) file[29 + i] = std::uint8_t(crc >> (24 - 8 * i));
      }
    }
    try {
      decode_image(file, "mutated.png", {.max_pixels = 1 << 20});
    } catch (const DataError& e) {
      ++refused;
      EXPECT_NE(std::string(e.what()).find("mutated.png"), std::string::npos);
    }
  }
  EXPECT_GT(refused, 250);
}

TEST(Images, Mistakes) {
  TRIREME_NEEDS("PNG");
  std::vector<int> samples;
  const Bytes png = make_png(2, 8, false, samples);
  EXPECT_THROW(decode_image({}, "empty"), DataError);
  EXPECT_THROW(decode_image(Bytes{'G', 'I', 'F', '8'}, "x.gif"), DataError);
  EXPECT_THROW(decode_image(png, "large.png", {.max_pixels = 23 * 17 - 1}), DataError);
  EXPECT_THROW(load_image("/no/such/file.png"), DataError);
  EXPECT_THROW(load_image(fs::temp_directory_path().string()), DataError);
  const auto path = fs::temp_directory_path() / ("trireme_image_" + std::to_string(getpid()) + ".png");
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(png.data()), std::streamsize(png.size()));
  EXPECT_EQ(load_image(path.string()).width, 23);
  EXPECT_THROW(load_image(path.string(), {.max_file_bytes = 10}), DataError);
  fs::remove(path);
}

TEST(Images, ResizeKeepsConstantsAndMeans) {
  Image in{50, 30, Bytes(50 * 30 * 3, 77)};
  for (auto [w, h] : {std::pair(10, 10), {50, 30}, {80, 7}, {1, 1}})
    for (auto v : resize(in, w, h).rgb) ASSERT_EQ(v, 77);
  // A linear ramp stays linear away from the border, shrunk or grown.
  for (int y = 0; y < 30; ++y)
    for (int x = 0; x < 50; ++x) in.rgb[(y * 50 + x) * 3] = std::uint8_t(5 * x);
  const Image half = resize(in, 25, 30), twice = resize(in, 100, 30);
  for (int x = 4; x < 21; ++x) EXPECT_NEAR(half.rgb[(15 * 25 + x) * 3], 5 * (2 * x + 0.5), 1);
  for (int x = 8; x < 92; ++x) EXPECT_NEAR(twice.rgb[(15 * 100 + x) * 3], 5 * (x / 2.0 - 0.25), 1);
  // A checkerboard at the finest scale turns grey: no aliasing.
  Image board{64, 64, Bytes(64 * 64 * 3)};
  for (int i = 0; i < 64 * 64; ++i)
    for (int c = 0; c < 3; ++c) board.rgb[3 * i + c] = (i / 64 + i) % 2 ? 255 : 0;
  const Image grey = resize(board, 16, 16);
  for (int i = 3 * 16 + 3; i < 13 * 16 - 3; ++i) EXPECT_NEAR(grey.rgb[3 * i], 127.5, 3);
}

TEST(Images, FitsTheLongSideOnWhite) {
  const Image in{40, 10, Bytes(40 * 10 * 3, 0)};
  const auto planes = fit_square(in, 20);
  ASSERT_EQ(planes.size(), 3u * 20 * 20);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < 20; ++y)
      for (int x = 0; x < 20; ++x) ASSERT_EQ(planes[(c * 20 + y) * 20 + x], y >= 7 && y < 12 ? 0 : 255) << y;
  EXPECT_EQ(fit_square(Image{1000, 1, Bytes(3000, 9)}, 8).size(), 3u * 64);  // never less than one row
}

}  // namespace

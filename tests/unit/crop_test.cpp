// Crops against Pillow's and torchvision's own output, and against the formula in f64.
#include "data/image_text/crop.h"

#include "data/image_text/resize.h"
#include "data/image_text/view.h"
#include "tests/max_difference.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace {

using namespace trireme;
using namespace trireme::test;
using Levels = std::vector<std::uint8_t>;

// As crop_cases.py makes it.
Picture picture(int width, int height) {
  Picture p{width, height, {width, height, {}}};
  for (std::uint32_t y = 0; y < std::uint32_t(height); ++y)
    for (std::uint32_t x = 0; x < std::uint32_t(width); ++x)
      for (std::uint32_t c = 0; c < 3; ++c) {
        const std::uint32_t noise = (x * 7919u + y * 104729u + c * 1299709u) * 2654435761u >> 24;
        p.pixels.rgb.push_back(std::uint8_t((x / 8 + y / 8) % 2 == 0 ? noise : (x * (3 + c) + y * (5 - c)) & 255));
      }
  return p;
}

Levels levels_of(const View& view, const Picture& p, int size) {
  const Cut c = cut(view, p, size);
  Levels out(std::size_t(size) * size * 3);
  const auto* from = p.pixels.rgb.data() + std::size_t(c.y) * c.crop.pitch + std::size_t(c.x) * 3;
  crop_resize({from, 0, &c.crop, 1, size, {}, DType::u8, out.data()}, {});
  return out;
}

nlohmann::json cases() {
  std::ifstream in(reference_file("crop_cases.json"));
  return nlohmann::json::parse(in);
}

std::string hex_of(const Levels& levels) {
  std::string out;
  for (const auto v : levels) out += "0123456789abcdef"[v / 16], out += "0123456789abcdef"[v % 16];
  return out;
}

View view_of(const nlohmann::json& c) {
  const int width = c["width"], height = c["height"], size = c.value("size", 1);
  View v = middle_view(width, height, size);
  if (c["box"].is_array())
    v = {c["box"][0],
         c["box"][1],
         c["box"][2],
         c["box"][3],
         false,
         true,
         down_first(c["box"][2], c["box"][3], size, size)};
  v.mirror = c.value("mirror", false);
  return v;
}

TEST(Crop, EqualsPillow) {
  const nlohmann::json all = cases();
  ASSERT_GT(all["crops"].size(), 20u);
  for (const auto& c : all["crops"]) {
    const Levels out = levels_of(view_of(c), picture(c["width"], c["height"]), c["size"]);
    EXPECT_EQ(hex_of(out), c["levels"]) << c["width"] << "x" << c["height"] << " " << c["box"] << " to " << c["size"];
  }
}

TEST(Resize, EqualsPillow) {
  const nlohmann::json all = cases();
  ASSERT_GT(all["resizes"].size(), 20u);
  int columns_first = 0;
  for (const auto& c : all["resizes"]) {
    const int w = c["out"][0], h = c["out"][1];
    const Image in = picture(c["in"][0], c["in"][1]).pixels;
    const Image out = resize(in, w, h, c["filter"] == "bicubic" ? Filter::bicubic : Filter::bilinear);
    EXPECT_EQ(hex_of(out.rgb), c["levels"]) << c["in"] << " to " << c["out"] << ", " << c["filter"];
    columns_first += down_first(in.width, in.height, w, h);
  }
  EXPECT_GT(columns_first, 5);
  EXPECT_LT(columns_first, 17);
}

// Both passes by their definition, in f64, with levels rounded between them.
std::vector<double> by_formula(const Levels& in, int height, int pitch, const Crop& c, int size) {
  const auto weights = [](double begin, double length, int extent, int out, int i) {
    std::vector<double> w(std::size_t(extent), 0.0);
    const double scale = length / out, stretch = std::max(1.0, scale), center = begin + (i + 0.5) * scale;
    double sum = 0;
    for (int k = 0; k < extent; ++k) {
      const double x = std::abs(k + 0.5 - center) / stretch;
      w[std::size_t(k)] = x < 1   ? 1.5 * x * x * x - 2.5 * x * x + 1
                          : x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2
                                  : 0;
      sum += w[std::size_t(k)];
    }
    for (double& v : w) v /= sum;
    return w;
  };
  const auto across = [&](const std::vector<double>& from, int rows, int step) {
    std::vector<double> to(std::size_t(rows) * size * 3);
    for (int x = 0; x < size; ++x) {
      const auto w = weights(c.left, c.box_width, c.width, size, c.mirror ? size - 1 - x : x);
      for (int y = 0; y < rows; ++y)
        for (int ch = 0; ch < 3; ++ch)
          for (int k = 0; k < c.width; ++k)
            to[(std::size_t(y) * size + x) * 3 + ch] += w[std::size_t(k)] * from[std::size_t(y) * step + 3 * k + ch];
    }
    return to;
  };
  const auto down = [&](const std::vector<double>& from, int step) {
    std::vector<double> to(std::size_t(size) * step);
    for (int y = 0; y < size; ++y) {
      const auto w = weights(c.top, c.box_height, c.height, size, y);
      for (int k = 0; k < height; ++k)
        for (int i = 0; i < step; ++i)
          to[std::size_t(y) * step + i] += w[std::size_t(k)] * from[std::size_t(k) * step + i];
    }
    return to;
  };
  const auto levels = [](std::vector<double> v) {
    for (double& x : v) x = std::clamp(std::floor(x + 0.5), 0.0, 255.0);
    return v;
  };
  const std::vector<double> from(in.begin(), in.end());
  std::vector<double> out = c.down_first ? across(levels(down(from, pitch)), size, pitch)
                                         : down(levels(across(from, height, pitch)), 3 * size);
  for (double& x : out) x = std::clamp(x, 0.0, 255.0);
  return out;
}

// Boxes at fractions of a pixel, as scaled JPEGs have them, of every size and place.
TEST(Crop, EqualsTheFormula) {
  Rng rng(5, "test");
  double sum = 0, count = 0;
  for (int round = 0; round < 80; ++round) {
    const int width = 1 + int(rng.below(60)), height = 1 + int(rng.below(60)), size = 1 + int(rng.below(40));
    const Picture p = picture(width, height);
    Crop c{width, height, int(rng.below(2)), 3 * width, 0, 0, 0, 0};
    c.left = width * rng.uniform() * 0.9, c.top = height * rng.uniform() * 0.9;
    c.box_width = (width - c.left) * (0.01 + 0.99 * rng.uniform());
    c.box_height = (height - c.top) * (0.01 + 0.99 * rng.uniform());
    c.down_first = int(rng.below(2));
    const auto expected = by_formula(p.pixels.rgb, height, 3 * width, c, size);
    Levels out(expected.size());
    crop_resize({p.pixels.rgb.data(), 0, &c, 1, size, {}, DType::u8, out.data()}, {});
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      worst = test::nan_max(worst, std::abs(expected[i] - out[i]));
      sum += std::abs(expected[i] - out[i]);
    }
    // Half a level of rounding, and where the first pass rounded the other way its weight once more.
    EXPECT_LT(worst, 1.7) << width << "x" << height << " to " << size;
    count += double(out.size());
  }
  EXPECT_LT(sum / count, 0.27);  // rounding alone: 0.25
}

TEST(Crop, ConstantStaysAndSizesOfTheSameAreCopied) {
  Picture p{300, 200, {300, 200, Levels(300 * 200 * 3, 77)}};
  for (const int size : {1, 7, 224, 301})
    for (const auto level : levels_of(middle_view(300, 200, size), p, size)) ASSERT_EQ(level, 77) << size;
  const Picture same = picture(37, 37);
  EXPECT_EQ(levels_of(middle_view(37, 37, 37), same, 37), same.pixels.rgb);
  View mirrored = middle_view(37, 37, 37);
  mirrored.mirror = true;
  const Levels out = levels_of(mirrored, same, 37);
  for (int y = 0; y < 37; ++y)
    for (int x = 0; x < 37; ++x)
      for (int c = 0; c < 3; ++c) ASSERT_EQ(out[(y * 37 + x) * 3 + c], same.pixels.rgb[(y * 37 + 36 - x) * 3 + c]);
}

// What lies outside the region is not read: a picture within a larger one gives the same.
TEST(Crop, SeesItsRegionAlone) {
  const Picture whole = picture(90, 80);
  Picture part{40, 30, {40, 30, {}}};
  for (int y = 0; y < 30; ++y)
    for (int i = 0; i < 120; ++i) part.pixels.rgb.push_back(whole.pixels.rgb[(y + 20) * 270 + 30 + i]);
  EXPECT_EQ(levels_of({10, 20, 40, 30, false, true}, whole, 21), levels_of({0, 0, 40, 30, false, true}, part, 21));
}

TEST(Crop, NormalisesToEveryType) {
  const int s = 19;
  const Picture p = picture(50, 40);
  const View v{3, 4, 41, 33, true, true};
  const Levels levels = levels_of(v, p, s);
  const Cut c = cut(v, p, s);
  const auto* from = p.pixels.rgb.data() + std::size_t(c.y) * c.crop.pitch + std::size_t(c.x) * 3;
  std::vector<double> f64(levels.size());
  std::vector<float> f32(levels.size());
  std::vector<std::uint16_t> bf16(levels.size());
  crop_resize({from, 0, &c.crop, 1, s, {}, DType::f64, f64.data()}, {});
  crop_resize({from, 0, &c.crop, 1, s, {}, DType::f32, f32.data()}, {});
  crop_resize({from, 0, &c.crop, 1, s, {}, DType::bf16, bf16.data()}, {});
  const PixelStatistics stats;
  for (int ch = 0; ch < 3; ++ch)
    for (int i = 0; i < s * s; ++i) {
      const double expected = (levels[std::size_t(i) * 3 + ch] / 255.0 - stats.mean[ch]) / stats.std_dev[ch];
      const std::size_t at = std::size_t(ch) * s * s + i;
      ASSERT_NEAR(f64[at], expected, 1e-14);
      ASSERT_NEAR(f32[at], expected, 4e-7);
      const std::uint32_t wide = std::uint32_t(bf16[at]) << 16;
      float value;
      std::memcpy(&value, &wide, 4);
      ASSERT_NEAR(value, f32[at], std::abs(f32[at]) / 256 + 1e-9);
    }
  EXPECT_THROW(crop_resize({from, 0, &c.crop, 1, s, {}, DType::i64, f64.data()}, {}), Error);
  EXPECT_THROW(crop_resize({from, 0, &c.crop, 1, s, {}, DType::f32, f32.data()}, Place{0, nullptr}), Error)
      << "a device without its twin, or without a GPU";
}

TEST(Crop, NoAxisHasMoreTapsThanPromised) {
  Rng rng(1, "test");
  for (int round = 0; round < 2000; ++round) {
    const ResizeAxis a{100 * rng.uniform(), 0.01 + 900 * rng.uniform(), 1000, 1 + int(rng.below(300))};
    for (int i = 0; i < a.out; ++i) {
      const TapRange t = taps_at(a, i);
      ASSERT_GE(t.count, 1);
      ASSERT_LE(t.count, most_taps(stretch_of(a)));
      ASSERT_GE(t.first, 0);
      ASSERT_LE(t.first + t.count, a.extent);
    }
  }
  EXPECT_LE(most_taps(most_reduction), 4 * most_reduction + 3) << "what crop.cu has room for";
}

TEST(View, FallsBackAsTorchvision) {
  const nlohmann::json all = cases();
  ASSERT_GT(all["fallbacks"].size(), 4u);
  for (const auto& c : all["fallbacks"]) {
    const View expected = view_of(c), v = random_view(Rng(1, "augment"), c["width"], c["height"], 24, 0.9, 0);
    EXPECT_EQ(v.left, expected.left) << c.dump();
    EXPECT_EQ(v.top, expected.top);
    EXPECT_EQ(v.width, expected.width) << c.dump();
    EXPECT_EQ(v.height, expected.height);
  }
}

TEST(View, RandomBoxesKeepTheirBounds) {
  const int width = 320, height = 256, n = 4000;
  int mirrored = 0, whole = 0, left = 0, right = 0;
  double area = 0, w = 0, h = 0, x = 0;
  for (int i = 0; i < n; ++i) {
    const View v = random_view(Rng(3, "augment", 1, std::uint64_t(i)), width, height, 224, 0.5, 0.3);
    ASSERT_GE(v.left, 0);
    ASSERT_GE(v.top, 0);
    ASSERT_LE(v.left + v.width, width);
    ASSERT_LE(v.top + v.height, height);
    ASSERT_EQ(v.width, std::floor(v.width));
    mirrored += v.mirror, whole += v.width == width && v.height == height;
    left += v.left == 0, right += v.left + v.width == width;
    ASSERT_GT(v.width / v.height, 0.74);
    ASSERT_LT(v.width / v.height, 1.35);
    ASSERT_GT(v.width * v.height, 0.49 * width * height);
    area += v.width * v.height / (width * height), w += v.width, h += v.height, x += v.left;
  }
  EXPECT_NEAR(mirrored, 0.3 * n, 130);
  // torchvision's means over 40,000 draws.
  EXPECT_NEAR(area / n, 0.679, 0.007);
  EXPECT_NEAR(w / n, 244.3, 2);
  EXPECT_NEAR(h / n, 227.1, 1);
  EXPECT_NEAR(x / n, 37.9, 2);
  EXPECT_GT(left, 10);
  EXPECT_NEAR(left, right, 5 * std::sqrt(double(left)));
  const View a = random_view(Rng(3, "augment", 1, 7), width, height, 224, 0.5, 0.3),
             b = random_view(Rng(3, "augment", 2, 7), width, height, 224, 0.5, 0.3);
  EXPECT_NE(a.left + 1000 * a.width, b.left + 1000 * b.width) << "another epoch, another crop";
  // Off: as evaluation has it.
  const View off = random_view(Rng(3, "augment"), width, height, 224, 1, 1);
  EXPECT_TRUE(off.mirror);
  EXPECT_EQ(off.width, middle_view(width, height, 224).width);
}

// A JPEG at half its size: the box lies at halves of its pixels, and sees none beyond them.
TEST(View, BoxesFollowScaledPixels) {
  Picture p{101, 64, {51, 32, Levels(51 * 32 * 3, 9)}};
  const Cut c = cut({11, 6, 90, 50, false, true}, p, 24);
  EXPECT_EQ(c.x, 5);
  EXPECT_EQ(c.crop.left, 0.5);
  EXPECT_EQ(c.crop.box_width, 45);
  EXPECT_EQ(c.x + c.crop.width, 51);
  EXPECT_EQ(c.y, 3);
  EXPECT_EQ(c.crop.top, 0);
  EXPECT_EQ(c.crop.height, 25);
  EXPECT_EQ(c.crop.pitch, 153);
  EXPECT_EQ(least_factor({11, 6, 90, 50, false, true}, 25), 0.5);
  EXPECT_EQ(least_factor({0, 0, 10, 50, false, true}, 25), 2.5);
}

}  // namespace

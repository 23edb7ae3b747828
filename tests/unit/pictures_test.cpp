// Metrics of pictures: what rules read off renders of known scenes and off noise, and figures against formulas and
// scikit-image.
#include "framework/metrics/pictures.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/metrics/scene_score.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

TEST(Pictures, RulesReadWhatWasRendered) {
  const SceneRange range;
  for (const int side : {64, 128, 256}) {
    const SceneReader reader(range, side, side);
    std::vector<SceneScore> scores;
    for (std::uint64_t i = 0; i < (side == 64 ? 200u : side == 128 ? 60u : 20u); ++i) {
      const Scene scene = scene_within(range, 5, i);
      scores.push_back(reader.score(render(scene, side, side), scene));
    }
    const auto mean = mean_scores(scores);
    EXPECT_GE(mean.at("attribute_accuracy"), 0.99) << side;
    EXPECT_GE(mean.at("all_right"), 0.97) << side;
    EXPECT_GE(mean.at("mask_iou"), 0.85) << side;
    EXPECT_EQ(mean.at("duplicates"), 0) << side;
    EXPECT_EQ(mean.at("missing"), 0) << side;
  }
}

TEST(Pictures, NoiseAndOtherScenesScoreNearChance) {
  const SceneRange range;
  const SceneReader reader(range, 64, 64);
  std::vector<SceneScore> noise, others, flat;
  Rng rng(1, "noise picture");
  for (std::uint64_t i = 0; i < 100; ++i) {
    const Scene scene = scene_within(range, 5, i);
    Image picture{64, 64, std::vector<std::uint8_t>(64 * 64 * 3)};
    flat.push_back(reader.score(picture, scene));
    for (auto& v : picture.rgb) v = std::uint8_t(rng.below(256));
    noise.push_back(reader.score(picture, scene));
    others.push_back(reader.score(render(scene_within(range, 5, i + 1000), 64, 64), scene));
  }
  // Guessing: 1/8 of colors twice, 1/6 of shapes, 1/2 of sizes and textures, 1/9 of cells: 0.25 in the mean.
  EXPECT_LT(mean_scores(noise).at("attribute_accuracy"), 0.35);
  EXPECT_NEAR(mean_scores(others).at("attribute_accuracy"), 0.25, 0.08);
  EXPECT_LT(mean_scores(flat).at("attribute_accuracy"), 0.1);
  EXPECT_NEAR(mean_scores(flat).at("missing"), 1, 1e-12);
}

TEST(Pictures, ASecondObjectIsADuplicateAndEachAttributeCounts) {
  const SceneRange range;
  const SceneReader reader(range, 128, 128);
  Scene scene;
  scene.ground = 11;
  SceneObject o;
  o.shape = 0, o.color = 0, o.size = 2, o.texture = 1, o.cell = 4;
  scene.objects = {o};
  const Image picture = render(scene, 128, 128);
  EXPECT_TRUE(reader.score(picture, scene).all_right);
  const std::function<void(Scene&)> wrong[] = {[](Scene& s) { s.ground = 4; },
                                               [](Scene& s) { s.objects[0].color = 5; },
                                               [](Scene& s) { s.objects[0].shape = 6; },
                                               [](Scene& s) { s.objects[0].size = 1; },
                                               [](Scene& s) { s.objects[0].texture = 0; },
                                               [](Scene& s) { s.objects[0].cell = 0; }};
  for (std::size_t k = 0; k < 6; ++k) {
    Scene asked = scene;
    wrong[k](asked);
    const SceneScore s = reader.score(picture, asked);
    for (std::size_t j = 0; j < 6; ++j) EXPECT_EQ(s.right[j], j == k ? 0 : 1) << k << " " << j;
    EXPECT_NEAR(s.accuracy, 5.0 / 6, 1e-12);
    EXPECT_FALSE(s.all_right);
  }
  Scene two = scene;
  o.cell = 0, o.size = 1;
  two.objects.push_back(o);
  const SceneScore twice = reader.score(render(two, 128, 128), scene);
  EXPECT_EQ(twice.duplicates, 1);
  EXPECT_TRUE(twice.all_right);
  EXPECT_TRUE(reader.score(render(two, 128, 128), two).all_right);
  EXPECT_EQ(reader.score(picture, two).missing, 1);
}

TEST(Pictures, ComponentsTouchByAnEdge) {
  //  1 1 0 1
  //  0 0 1 1
  //  1 0 0 0
  const PixelMask mask{4, 3, {1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0}};
  const auto all = components(mask, 1);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].area, 3);
  EXPECT_NEAR(all[0].x, (3.5 + 2.5 + 3.5) / 3, 1e-12);
  EXPECT_NEAR(all[0].y, (0.5 + 1.5 + 1.5) / 3, 1e-12);
  EXPECT_EQ(components(mask, 2).size(), 2u);
  EXPECT_EQ(mask_iou(all[0].mask, all[1].mask), 0);
  EXPECT_NEAR(mask_iou(all[0].mask, mask), 0.5, 1e-12);
}

struct Waves {
  std::int64_t height = 40, width = 52;
  std::vector<float> v;
  explicit Waves(bool other) {
    for (int c = 0; c < 3; ++c)
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
          const double phase = 0.3 * x + 0.1 * y * (c + 1);
          v.push_back(float(other ? 0.5 + 0.35 * std::sin(phase + 0.2) + 0.05 * std::cos(1.7 * x)
                                  : 0.5 + 0.4 * std::sin(phase)));
        }
  }
  PicturePlanes planes() const { return {v.data(), 3, height, width}; }
};

TEST(Pictures, LikenessIsThatOfScikitImage) {
  const Waves a(false), b(true);
  // skimage.metrics 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
  // data_range=1, channel_axis=0), peak_signal_noise_ratio(data_range=1).
  EXPECT_NEAR(ssim(a.planes(), b.planes()), 0.902355620297642, 1e-6);
  EXPECT_NEAR(psnr(a.planes(), b.planes()), 22.77043325590206, 1e-6);
  EXPECT_NEAR(ssim(a.planes(), a.planes()), 1, 1e-12);
  EXPECT_NEAR(ms_ssim(a.planes(), a.planes()), 1, 1e-12);
  EXPECT_LT(ms_ssim(a.planes(), b.planes()), 1);
  EXPECT_EQ(psnr(a.planes(), a.planes()), std::numeric_limits<double>::infinity());
  const PicturePlanes small{a.v.data(), 3, 8, 8};
  EXPECT_THROW(ssim(small, small), UsageError);
  EXPECT_THROW(psnr(small, a.planes()), UsageError);
}

TEST(Pictures, SpectrumHasItsPeakAtTheWave) {
  std::vector<float> v;
  for (int y = 0; y < 32; ++y)
    for (int x = 0; x < 32; ++x) v.push_back(float(0.5 + 0.5 * std::sin(2 * std::acos(-1.0) * 5 * x / 32)));
  const PicturePlanes p{v.data(), 1, 32, 32};
  const auto power = radial_spectrum(p);
  ASSERT_EQ(power.size(), 15u);
  for (std::size_t k = 0; k < power.size(); ++k)
    if (k != 4) {
      EXPECT_LT(power[k], power[4] - 3) << k;
    }
  for (const int side : {15, 24, 30}) {  // odd, and with odd parts
    std::vector<float> w;
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x) w.push_back(float(std::cos(2 * std::acos(-1.0) * 5 * y / side)));
    const auto found = radial_spectrum({w.data(), 1, side, side});
    EXPECT_EQ(std::max_element(found.begin(), found.end()) - found.begin(), 4) << side;
  }
  EXPECT_EQ(spectrum_distance(power, power), 0);
  EXPECT_GT(spectrum_distance(power, radial_spectrum({v.data(), 1, 16, 32})), 0);
}

TEST(Pictures, SeamsAreJumpsAtTilesOverJumpsAtOtherPatches) {
  const std::int64_t n = 32;
  std::vector<float> v(std::size_t(n * n));
  // Each patch of 4 differs from the next by 0.1, each tile of 16 by 0.3 more.
  const auto level = [](std::int64_t i) { return 0.1 * double(i / 4) + 0.3 * double(i / 16); };
  for (std::int64_t y = 0; y < n; ++y)
    for (std::int64_t x = 0; x < n; ++x) v[std::size_t(y * n + x)] = float(level(x) + level(y));
  EXPECT_NEAR(seam_ratio({v.data(), 1, n, n}, 16, 16, 4), 4, 1e-4);
  EXPECT_EQ(seam_ratio({v.data(), 1, n, n}, 32, 32, 4), 0);
}

TEST(Pictures, FlickerIsTheChangeOfTheMeanColor) {
  const std::vector<float> dark(3 * 16, 0.25f), light(3 * 16, 0.75f);
  const PicturePlanes a{dark.data(), 3, 4, 4}, b{light.data(), 3, 4, 4};
  const auto flicker = [](const std::vector<PicturePlanes>& frames) {
    ColorFlicker all;
    for (const auto& frame : frames) all.add(frame);
    return all.mean();
  };
  EXPECT_NEAR(flicker({a, b, a}), 0.5, 1e-12);
  EXPECT_EQ(flicker({a, a}), 0);
  EXPECT_EQ(flicker({a}), 0);
  EXPECT_EQ(flicker({}), 0);
}

}  // namespace
}  // namespace trireme::test

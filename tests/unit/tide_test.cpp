// TIDE: the tables of its positions and temperature, the identities of its text anchor, the method on small models, and
// one model on several ranks (ring, Ulysses, guidance halves) against one rank.
#include "framework/models/dit/rope_scaling.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

namespace trireme {
namespace {

RopeAxis flux_axis(double scale) { return {.dim = 56, .theta = 1e4, .trained = 64, .scale = scale}; }

// T1: the tables of the method's description, to the digits given there.
TEST(RopeScaling, TextAnchorGrowsWithTheArea) {
  EXPECT_NEAR(text_anchor(128 * 128, 4096), 1.3863, 5e-5);
  EXPECT_NEAR(text_anchor(192 * 192, 4096), 2.1972, 5e-5);
  EXPECT_NEAR(text_anchor(256 * 256, 4096), 2.7726, 5e-5);
  // Not square: a constant of the area, not of either side (T5).
  EXPECT_EQ(text_anchor(256 * 64, 4096), std::log(4.0));
}

TEST(RopeScaling, LeastTemperature) {
  const double scale[] = {2, 3, 4, 6}, tau[] = {0.8746, 0.8118, 0.7713, 0.7192},
               inverse[] = {1.1434, 1.2318, 1.2965, 1.3905};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(least_temperature(scale[i]), tau[i], 5e-5);
    EXPECT_NEAR(1 / least_temperature(scale[i]), inverse[i], 5e-5);
  }
}

TEST(RopeScaling, TemperatureOfTimeAndFrequency) {
  const double time[] = {1.0, 0.7, 0.3, 0.1};
  const double expected[4][4] = {{1.2965, 1.2965, 1.2965, 1.2965},
                                 {1.2705, 1.2481, 1.2342, 1.2264},
                                 {1.2191, 1.1662, 1.1388, 1.1249},
                                 {1.1686, 1.1020, 1.0737, 1.0610}};
  const std::size_t pair[] = {0, 2, 5, 27};
  for (int t = 0; t < 4; ++t) {
    const auto pairs = scaled_axis(flux_axis(4), {}, time[t]);
    for (int i = 0; i < 4; ++i) {
      // What two scaled tables multiply a logit by.
      EXPECT_NEAR(pairs[pair[i]].gain * pairs[pair[i]].gain, expected[t][i], 5e-5) << time[t] << ' ' << pair[i];
    }
  }
  for (const auto& p : scaled_axis(flux_axis(4), {}, 0)) EXPECT_EQ(p.gain, 1);
}

TEST(RopeScaling, YarnRampWithDype) {
  const struct {
    double time, low, high;
  } rows[] = {{1, 0, 8}, {0.9, 0, 8}, {0.7, 0, 8}, {0.5, 1, 8}, {0.3, 5, 8}, {0.01, 7, 8}};
  for (const auto& r : rows) {
    const YarnRamp ramp = yarn_ramp(flux_axis(4), true, r.time);
    EXPECT_EQ(ramp.low, r.low) << r.time;
    EXPECT_EQ(ramp.high, r.high) << r.time;
  }
  const YarnRamp constant = yarn_ramp(flux_axis(4), false, 0.01);
  EXPECT_EQ(constant.low, 0);
  EXPECT_EQ(constant.high, 8);
  // A model so small that no pair turns once over its side: a ramp all the same, and nothing divided by zero.
  const auto tiny = scaled_axis({.dim = 8, .theta = 1e4, .trained = 4, .scale = 2}, {.dype = false}, 1);
  EXPECT_NEAR(tiny[1].frequency, std::pow(1e4, -0.25) / 2, 1e-15);
}

TEST(RopeScaling, PositionsSwitchedOneByOne) {
  auto frequency = [](Positions positions, bool dype, double time, std::size_t pair) {
    return scaled_axis(flux_axis(4), {.positions = positions, .dype = dype, .dynamic_temperature = false}, time)[pair];
  };
  auto plain = [](double theta, double pair) { return std::pow(theta, -2 * pair / 56); };
  EXPECT_DOUBLE_EQ(frequency(Positions::none, true, 1, 9).frequency, plain(1e4, 9));
  EXPECT_DOUBLE_EQ(frequency(Positions::pi, true, 1, 9).frequency, plain(1e4, 9) / 4);
  // YaRN: fast pairs as they were, slow ones interpolated, half way between at the middle of the ramp.
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 0).frequency, 1);
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 4).frequency, plain(1e4, 4) * (0.5 + 0.5 / 4));
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 20).frequency, plain(1e4, 20) / 4);
  // NTK leaves the fastest pair alone and interpolates the slowest; DyPE squares that at t = 1 and takes it away at 0.
  EXPECT_DOUBLE_EQ(frequency(Positions::ntk, false, 0.3, 0).frequency, 1);
  EXPECT_NEAR(frequency(Positions::ntk, false, 0.3, 27).frequency, plain(1e4, 27) / 4, 1e-15);
  EXPECT_NEAR(frequency(Positions::ntk, true, 1, 27).frequency, plain(1e4, 27) / 16, 1e-15);
  EXPECT_DOUBLE_EQ(frequency(Positions::ntk, true, 0, 27).frequency, plain(1e4, 27));
  // Without the dynamic temperature: YaRN's own is constant, other positions have none.
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, true, 0.1, 5).gain, 0.1 * std::log(4.0) + 1);
  EXPECT_EQ(frequency(Positions::pi, true, 0.1, 5).gain, 1);
  EXPECT_EQ(frequency(Positions::ntk, true, 0.1, 5).gain, 1);
}

TEST(RopeScaling, NormalizedFrequencyIsThePlaceInTheAxis) {
  const auto pairs = scaled_axis(flux_axis(4), {.normalized = true}, 0.3);
  EXPECT_DOUBLE_EQ(pairs[0].gain, scaled_axis(flux_axis(4), {}, 0.3)[0].gain);
  EXPECT_NEAR(pairs[27].gain * pairs[27].gain, 1 / (1 - (1 - least_temperature(4)) * std::pow(0.3, 0.6)), 1e-12);
  EXPECT_GT(pairs[14].gain, pairs[27].gain);
  EXPECT_LT(pairs[14].gain, pairs[0].gain);
}

TEST(RopeScaling, NoLargerThanTrainedIsLeftAlone) {
  for (double scale : {0.5, 1.0}) {
    const auto pairs = scaled_axis(flux_axis(scale), {}, 0.8);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      EXPECT_EQ(pairs[i].gain, 1);
      EXPECT_DOUBLE_EQ(pairs[i].frequency, std::pow(1e4, -2.0 * static_cast<double>(i) / 56));
    }
  }
}

// T2: four ways to the same attention, in f64.
TEST(TextAnchor, FourIdentities) {
  const std::int64_t texts = 5, images = 12, dim = 8, times = 4;
  const double beta = std::log(static_cast<double>(times)), scale = 1 / std::sqrt(8.0);
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  auto draw = [&](std::int64_t rows) { return at::randn({rows, dim}, generator, at::kDouble); };
  const at::Tensor q = draw(texts + images), kt = draw(texts), ki = draw(images), vt = draw(texts), vi = draw(images);
  auto attend = [](const at::Tensor& logits, const at::Tensor& v) { return logits.softmax(-1).matmul(v); };
  const at::Tensor text = q.matmul(kt.t()) * scale, image = q.matmul(ki.t()) * scale, v = at::cat({vt, vi});

  const at::Tensor biased = attend(at::cat({text + beta, image}, 1), v);
  const at::Tensor repeated =
      attend(at::cat({text.repeat({1, times}), image}, 1), at::cat({vt.repeat({times, 1}), vi}));
  const at::Tensor lt = text.logsumexp({1}, true) + beta, li = image.logsumexp({1}, true), l = at::logaddexp(lt, li);
  const at::Tensor merged = (lt - l).exp() * attend(text, vt) + (li - l).exp() * attend(image, vi);
  const at::Tensor q1 = at::cat({q, at::ones({texts + images, 1}, at::kDouble)}, 1);
  const at::Tensor k1 = at::cat({at::cat({kt, at::full({texts, 1}, beta / scale, at::kDouble)}, 1),
                                 at::cat({ki, at::zeros({images, 1}, at::kDouble)}, 1)});
  const at::Tensor channel = attend(q1.matmul(k1.t()) * scale, v);
  for (const at::Tensor& other : {repeated, merged, channel}) {
    EXPECT_LT((other - biased).abs().max().item<double>(), 1e-14);
  }
}

}  // namespace
}  // namespace trireme

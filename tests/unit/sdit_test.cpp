// SDiT (reconstruction) and its peers: labels against scikit-image, choices against transcripts, extrapolation.
#include "comm/device.h"
#include "comm/local/loopback.h"
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"
#include "framework/kernels/quickshift.h"
#include "framework/models/dit/prediction_cache.h"
#include "framework/models/dit/sequence_parallel.h"
#include "recipes/sdit/caches.h"
#include "recipes/sdit/ras.h"
#include "recipes/sdit/sparse.h"
#include "recipes/sdit/teacache_fit.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme {
namespace {

using sdit::RegionLabels;

// A file of vectors: of the folder that the environment names, or the committed one.
Safetensors vectors(const std::string& name) {
  const char* folder = std::getenv("TRIREME_DIT_VECTORS");
  if (folder && std::filesystem::exists(std::filesystem::path(folder) / name))
    return Safetensors((std::filesystem::path(folder) / name).string());
  return Safetensors(test::reference_file("dit/" + name));
}

at::Tensor randn(at::IntArrayRef shape, std::uint64_t seed) {
  at::Tensor t = at::empty(shape, at::kFloat);
  Rng rng(seed, "test");
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data_ptr<float>()[i] = float(rng.normal());
  return t;
}

struct Labels {
  at::Tensor map;
  std::int64_t segments;
};

Labels quickshift(const at::Tensor& image, const at::Tensor& noise, double ratio, double kernel_size, double max_dist,
                  at::Device device = at::kCPU) {
  const at::Tensor features = (image * ratio).contiguous().to(device), normals = noise.to(device);
  const auto rows = image.size(1), columns = image.size(2);
  const at::Tensor labels = at::empty({rows, columns}, features.options().dtype(at::kInt));
  const at::Tensor segments = at::empty({1}, labels.options());
  const at::Tensor scratch =
      at::empty({std::int64_t(kernels::quickshift_scratch(1, rows * columns))}, features.options().dtype(at::kByte));
  kernels::quickshift(
      {features.const_data_ptr<double>(), normals.const_data_ptr<double>(), 1, image.size(0), rows, columns,
       kernel_size, max_dist, labels.data_ptr<std::int32_t>(), segments.data_ptr<std::int32_t>(), scratch.data_ptr()},
      features.is_cuda() ? current_place(0) : Place{});
  return {labels.cpu(), segments.item<std::int32_t>()};
}

// S2.
TEST(Quickshift, GivesTheLabelsOfScikitImage) {
  const Safetensors file = vectors("quickshift.safetensors");
  int cases = 0;
  for (; file.has("labels" + std::to_string(cases)); ++cases) {
    const std::string k = std::to_string(cases);
    const at::Tensor s = file.tensor("settings" + k), expected = file.tensor("labels" + k);
    const auto at = [&](int i) { return s[i].item<double>(); };
    const at::Tensor image = file.tensor("image" + std::to_string(int(at(0))));
    const Labels got = quickshift(image, file.tensor("noise" + k), at(1), at(2), at(3));
    EXPECT_TRUE(got.map.equal(expected)) << "case " << k;
    EXPECT_EQ(got.segments, expected.max().item<std::int32_t>() + 1);
  }
  EXPECT_GE(cases, 13);
}

TEST(Quickshift, OnAGpuToo) {
  if (!device_runtime() || device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  const at::Tensor image = randn({16, 61, 47}, 1).to(at::kDouble), noise = randn({61, 47}, 2).to(at::kDouble);
  for (const double ratio : {0.3, 1.0, 4.0})
    for (const double size : {1.5, 3.0, 5.0}) {
      const Labels host = quickshift(image, noise, ratio, size, 6),
                   device = quickshift(image, noise, ratio, size, 6, at::Device(at::kCUDA, 0));
      EXPECT_TRUE(device.map.equal(host.map)) << ratio << " " << size;
      EXPECT_EQ(device.segments, host.segments);
    }
}

// Blobs of a latent, smooth.
at::Tensor blobs(std::int64_t size, std::uint64_t seed, double noise) {
  Rng rng(seed, "blobs");
  const at::Tensor y = at::arange(size, at::kFloat).view({size, 1}), x = at::arange(size, at::kFloat);
  at::Tensor latent = at::zeros({1, 4, 1, size, size}, at::kFloat);
  for (int blob = 0; blob < 60; ++blob) {
    const double cy = rng.uniform() * double(size), cx = rng.uniform() * double(size), w = 2 + 6 * rng.uniform();
    const at::Tensor place = (-((y - cy).square() + (x - cx).square()) / (2 * w * w)).exp();
    for (int c = 0; c < 4; ++c) latent[0][c][0] += (2 * rng.uniform() - 1) * place;
  }
  return latent + noise * randn(latent.sizes(), seed + 1);
}

// S3. At the default setting a 128 x 128 latent has 50 to 200 regions.
TEST(Quickshift, RegionsGrowWithRatioAndWithNoise) {
  const std::uint64_t seeds[] = {5};
  const auto count = [&](double ratio, double noise) {
    const at::Tensor x0 = blobs(128, 3, noise);
    return sdit::label_regions(x0, sdit::label_noise(seeds, 128, 128, at::kCPU), {.ratio = ratio})
        .count.item<std::int64_t>();
  };
  const auto plain = count(sdit::LabelSettings{}.ratio, 0);
  EXPECT_GE(plain, 50);
  EXPECT_LE(plain, 200);
  EXPECT_LT(count(1, 0), plain);
  EXPECT_LT(plain, count(20, 0));
  EXPECT_LT(plain, count(sdit::LabelSettings{}.ratio, 0.15));
}

TEST(Regions, FramesHaveRegionsOfTheirOwn) {
  const at::Tensor x0 = at::cat({blobs(16, 1, 0.1), blobs(16, 2, 0.1)}, 2);
  const std::uint64_t seeds[] = {5};
  const at::Tensor noise = sdit::label_noise(seeds, 16, 16, at::kCPU);
  const RegionLabels labels = sdit::label_regions(x0, noise, {});
  const at::Tensor first = labels.map.select(1, 0), second = labels.map.select(1, 1);
  EXPECT_LT(first.max().item<std::int64_t>(), second.min().item<std::int64_t>());
  EXPECT_EQ(second.max().item<std::int64_t>() + 1, labels.count.item<std::int64_t>());
}

// Places by plain loops over regions.
TEST(Regions, PlacesFollowTheMeanOfTheLargest) {
  const at::Tensor c = randn({2, 1, 9, 7}, 4).abs().clamp_max(1.5);
  at::Tensor map = at::empty({2, 1, 9, 7}, at::kLong);
  Rng rng(1, "labels");
  for (std::int64_t i = 0; i < map.numel(); ++i) map.data_ptr<std::int64_t>()[i] = std::int64_t(rng.below(11));
  const at::Tensor places = sdit::region_places({map, at::full({2}, 11, at::kLong)}, c, 0.75);
  for (int b = 0; b < 2; ++b) {
    std::map<std::int64_t, std::vector<double>> pixels;
    for (int i = 0; i < 63; ++i)
      pixels[map[b].flatten()[i].item<std::int64_t>()].push_back(c[b].flatten()[i].item<double>());
    std::vector<std::pair<double, std::int64_t>> scores;
    for (auto& [label, values] : pixels) {
      std::sort(values.rbegin(), values.rend());
      const auto n = std::size_t(std::ceil(0.75 * double(values.size())));
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) sum += values[i];
      scores.emplace_back(-sum / double(n), label);
    }
    std::sort(scores.begin(), scores.end());
    for (std::size_t place = 0; place < scores.size(); ++place)
      EXPECT_TRUE(places[b].masked_select(map[b] == scores[place].second).eq(double(place)).all().item<bool>());
  }
}

TEST(Regions, ComplexityIsOfTheFormula) {
  const at::Tensor x = randn({1, 3, 1, 5, 6}, 1), x0 = randn({1, 3, 1, 5, 6}, 2);
  const double weights[] = {1, 0.5, 0.3};
  const at::Tensor c = sdit::complexity(x, x0, weights)[0][0];
  const at::Tensor g = x0[0].mean(0)[0].to(at::kDouble);
  const auto at = [&](int r, int k) { return g[std::clamp(r, 0, 4)][std::clamp(k, 0, 5)].item<double>(); };
  at::Tensor parts = at::empty({3, 5, 6}, at::kDouble);
  for (int r = 0; r < 5; ++r)
    for (int k = 0; k < 6; ++k) {
      double gx = 0, gy = 0;
      const double side[] = {3, 10, 3};
      for (int i = -1; i <= 1; ++i) {
        gy += side[i + 1] * (at(r + 1, k + i) - at(r - 1, k + i)) / 16;
        gx += side[i + 1] * (at(r + i, k + 1) - at(r + i, k - 1)) / 16;
      }
      parts[0][r][k] = std::hypot(gx, gy);
      parts[1][r][k] = std::fabs(at(r - 1, k) + at(r + 1, k) + at(r, k - 1) + at(r, k + 1) - 4 * at(r, k));
      parts[2][r][k] = (x - x0)[0].abs().mean(0)[0][r][k].item<double>();
    }
  at::Tensor expected = at::zeros({5, 6}, at::kDouble);
  for (int i = 0; i < 3; ++i) expected += weights[i] * (parts[i] - parts[i].min()) / (parts[i].max() - parts[i].min());
  EXPECT_LE((c - expected).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(sdit::complexity(at::zeros_like(x), at::zeros_like(x), weights).abs().max().item<double>(), 0);
}

// Two regions side by side: columns 0 .. 7 are region 0, the rest region 1.
RegionLabels halves() {
  at::Tensor map = at::zeros({1, 1, 16, 16}, at::kLong);
  map.narrow(3, 8, 8).fill_(1);
  return {map, at::full({1}, 2, at::kLong)};
}

std::set<std::int64_t> columns_of(const at::Tensor& tokens) {
  std::set<std::int64_t> all;
  for (std::int64_t i = 0; i < tokens.size(1); ++i) all.insert(tokens[0][i].item<std::int64_t>() % 8);
  return all;
}

// S5: ties go by index, the count is the same everywhere, and rings come along.
TEST(Regions, TokensAreCutByPlaceAndIndex) {
  const RegionLabels two = halves();
  const at::Tensor places = (two.map == 0).to(at::kFloat);  // region 1 comes first
  sdit::TokenChoice choice{.ratio = 0.5, .dilate = 0, .round_to = 1};
  EXPECT_EQ(columns_of(sdit::choose_tokens(places, two, {}, choice, 0)), (std::set<std::int64_t>{4, 5, 6, 7}));
  choice.dilate = 1;  // column 3 has pixels next to region 1: its upper tokens push the lowest of 4 .. 7 out
  const at::Tensor ringed = sdit::choose_tokens(places, two, {}, choice, 0);
  EXPECT_EQ(ringed.size(1), 32);
  EXPECT_EQ(columns_of(ringed), (std::set<std::int64_t>{3, 4, 5, 6, 7}));
  choice.uncut = true;
  EXPECT_EQ(sdit::choose_tokens(places, two, {}, choice, 0).size(1), 40);
  choice.uncut = false, choice.regions = true;
  EXPECT_EQ(sdit::choose_tokens(places, two, {}, choice, 0).size(1), 40);
  choice = {.ratio = 0.3, .dilate = 0, .round_to = 8};
  const at::Tensor cut = sdit::choose_tokens(places, two, {}, choice, 0);
  EXPECT_EQ(cut.size(1), 24);  // 19.2 rounded up
  for (int i = 0; i < 24; ++i) EXPECT_EQ(cut[0][i].item<std::int64_t>(), i / 4 * 8 + 4 + i % 4);
}

TEST(Regions, RegionsThatAreNotDueComeLast) {
  at::Tensor map = at::arange(3, at::kLong).repeat_interleave(4).view({1, 1, 1, 12}).expand({1, 1, 2, 12}).contiguous();
  const RegionLabels three{map, at::full({1}, 3, at::kLong)};
  const at::Tensor places = map.to(at::kFloat);
  const sdit::TokenChoice choice{.ratio = 1.0 / 3, .dilate = 0, .round_to = 1, .period = {2, 1, 4}};
  EXPECT_EQ(columns_of(sdit::choose_tokens(places, three, {}, choice, 0)), (std::set<std::int64_t>{0, 1}));
  EXPECT_EQ(columns_of(sdit::choose_tokens(places, three, {}, choice, 1)), (std::set<std::int64_t>{2, 3}));
}

// Keys of few values, zeros of both signs, a NaN and infinities.
at::Tensor odd_keys(std::int64_t batch, std::int64_t n) {
  at::Tensor keys = (3 * randn({batch, n}, 9)).round() / 2;
  keys = at::where(randn({batch, n}, 8) > 0, keys, -at::zeros_like(keys));
  keys[0][n / 3] = std::numeric_limits<float>::quiet_NaN();
  keys[batch - 1][n / 2] = std::numeric_limits<float>::infinity();
  keys[0][n - 1] = -std::numeric_limits<float>::infinity();
  return keys;
}

TEST(Regions, FirstKeysAreThoseOfAStableSort) {
  const at::Tensor keys = odd_keys(2, 3001);
  for (const std::int64_t count : {1, 2, 64, 1500, 2999, 3001}) {
    const at::Tensor order = std::get<1>(at::sort(keys, /*stable=*/true, 1, false)).narrow(1, 0, count);
    EXPECT_TRUE(sdit::first_by_key(keys, count).equal(std::get<0>(order.sort(1)))) << count;
  }
}

// To the bit: ranks on either must choose alike.
TEST(Regions, OnAGpuToo) {
  if (!device_runtime() || device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  const double weights[] = {1, 0.5, 0.3};
  const std::uint64_t seeds[] = {1, 2};
  for (const std::int64_t side : {16, 70, 128}) {
    const at::Tensor x0 = randn({2, 16, 2, side, side}, 1), x = x0 + 0.3 * randn(x0.sizes(), 2);
    const RegionLabels host = sdit::label_regions(x0, sdit::label_noise(seeds, side, side, at::kCPU), {.ratio = 0.5});
    const RegionLabels there{host.map.to(gpu), host.count.to(gpu)};
    const at::Tensor c = sdit::complexity(x, x0, weights), there_c = sdit::complexity(x.to(gpu), x0.to(gpu), weights);
    EXPECT_TRUE(there_c.cpu().equal(c)) << side;
    const at::Tensor places = sdit::region_places(host, c, 0.75),
                     there_places = sdit::region_places(there, there_c, 0.75);
    EXPECT_TRUE(there_places.cpu().equal(places)) << side;
    EXPECT_TRUE(
        sdit::choose_tokens(there_places, there, {}, {}, 0).cpu().equal(sdit::choose_tokens(places, host, {}, {}, 0)))
        << side;
  }
  const at::Tensor one = at::zeros({1, 1, 1, 96, 96}, at::kLong), c = randn({1, 1, 96, 96}, 3).abs();
  const RegionLabels all{one.view({1, 1, 96, 96}), at::ones({1}, at::kLong)};  // one large region
  EXPECT_TRUE(sdit::region_places({all.map.to(gpu), all.count.to(gpu)}, c.to(gpu), 0.75)
                  .cpu()
                  .equal(sdit::region_places(all, c, 0.75)));
  for (const std::int64_t count : {1, 64, 1500, 3001})
    EXPECT_TRUE(
        sdit::first_by_key(odd_keys(2, 3001).to(gpu), count).cpu().equal(sdit::first_by_key(odd_keys(2, 3001), count)))
        << count;
}

// S7.
TEST(Ras, ChoosesAsTheTranscript) {
  const Safetensors file = vectors("ras.safetensors");
  int cases = 0;
  for (; file.has("case" + std::to_string(cases)); ++cases) {
    const std::string k = std::to_string(cases);
    const at::Tensor c = file.tensor("case" + k), rule = file.tensor("rule" + k), expected = file.tensor("active" + k);
    const auto at = [&](int i) { return c[i].item<std::int64_t>(); };
    const at::Tensor v = file.tensor("v" + std::to_string(at(0)));
    const auto steps = at(1), tokens = v.size(2) * v.size(3) / 4;
    const auto skips = sdit::ras_skips(
        {.sample_ratio = rule[0].item<double>(), .steps = steps, .start = at(2), .end = at(3), .resets = {at(4)}},
        tokens);
    at::Tensor dropped = at::full({1, tokens}, -double(steps + 1), at::kFloat), known = v[0];
    at::Tensor mask = at::ones({tokens}, at::kBool);
    for (std::int64_t step = 0; step < steps; ++step) {
      EXPECT_TRUE(mask.to(at::kByte).equal(expected[step])) << "case " << k << " step " << step;
      const at::Tensor pixels =
          mask.view({v.size(2) / 2, v.size(3) / 2}).repeat_interleave(2, 0).repeat_interleave(2, 1);
      known = at::where(pixels, v[step], known);
      mask = at::ones({tokens}, at::kBool);
      if (step + 1 == steps || skips[std::size_t(step + 1)] == 0) continue;
      const at::Tensor diff = known * (-1.0 / double(steps));
      const auto choice = sdit::choose_ras(
          sdit::ras_metric(diff.view({1, v.size(1), 1, v.size(2), v.size(3)}), {}, false), dropped,
          skips[std::size_t(step + 1)], {rule[1].item<double>(), double(at(5)), rule[2].item<double>()});
      mask = at::zeros({tokens}, at::kBool).index_fill_(0, choice.active[0], true);
    }
  }
  EXPECT_GE(cases, 12);
}

TEST(Ras, RampAsTheTranscript) {
  const Safetensors file = vectors("ras.safetensors");
  for (const std::string k : {"0", "1"}) {
    const at::Tensor r = file.tensor("ramp" + k), expected = file.tensor("skips" + k);
    const auto at = [&](int i) { return r[i].item<std::int64_t>(); };
    const auto skips = sdit::ras_skips(
        {.steps = at(1), .start = at(2), .end = at(1), .ramp = at(4), .ramp_steps = at(5), .resets = {at(3)}}, at(0));
    EXPECT_TRUE(at::tensor(skips, at::kLong).equal(expected)) << k;
  }
  EXPECT_THROW(sdit::ras_skips({.ramp = 4096, .ramp_steps = 2}, 64), UsageError);
}

// S4. Tokens were computed at sigmas of their own.
TEST(Extrapolation, IsExactForPolynomialsOfItsOrder) {
  for (const int order : {1, 2}) {
    VelocityHistory history({.order = order, .decay = 1});
    const at::Tensor a = randn({2, 6, 3}, 1), b = randn({2, 6, 3}, 2), c = randn({2, 6, 3}, 3) * (order - 1);
    const auto v = [&](double s) { return a + b * s + c * s * s; };
    const double sigmas[] = {1, 0.9, 0.77, 0.7, 0.55, 0.4};
    Rng rng(1, "active");
    for (int i = 0; i < 6; ++i) {
      if (i > order) {
        EXPECT_LE((history.extrapolate(sigmas[i]) - v(sigmas[i])).abs().max().item<double>(), 1e-5);
      }
      at::Tensor active;
      if (i > order)
        active = at::tensor({std::int64_t(0), std::int64_t(2 + i % 2), std::int64_t(4), std::int64_t(1),
                             std::int64_t(3), std::int64_t(5)},
                            at::kLong)
                     .view({2, 3});
      at::Tensor said = v(sigmas[i]);
      if (active.defined())  // what was not computed must not matter
        said = at::where(at::zeros({2, 6}, at::kBool).scatter_(1, active, true).unsqueeze(2), said, 1e3);
      history.computed(said, sigmas[i], active);
    }
  }
}

TEST(Extrapolation, IsDampedByTheStepsSinceATokenWasComputed) {
  VelocityHistory steps({.order = 1, .decay = 0.5}), by_order({.order = 1, .decay = 0.5, .by_order = true}),
      hold({.order = 0});
  const at::Tensor active = at::zeros({1, 1}, at::kLong);
  for (auto* h : {&steps, &by_order, &hold}) {
    h->computed(at::full({1, 2, 1}, 1.0f), 1.0);
    h->computed(at::full({1, 2, 1}, 2.0f), 0.9);          // slope -10
    h->computed(at::full({1, 2, 1}, 3.0f), 0.8, active);  // of token 0 alone
  }
  EXPECT_NEAR(steps.extrapolate(0.7)[0][0].item<double>(), 3 + 0.5 * 1, 1e-5);
  EXPECT_NEAR(steps.extrapolate(0.7)[0][1].item<double>(), 2 + 0.25 * 2, 1e-5);
  EXPECT_NEAR(by_order.extrapolate(0.7)[0][1].item<double>(), 2 + 0.5 * 2, 1e-5);
  EXPECT_EQ(hold.extrapolate(0.7)[0][1].item<double>(), 2);
}

TEST(Extrapolation, TaylorSeriesOfSteps) {
  TaylorSeries series(2);
  const auto f = [](double t) { return at::full({1}, 1 + 2 * t + 0 * t * t); };
  series.computed(f(0), 0);
  EXPECT_EQ(series.predict(3).item<float>(), 1);
  series.computed(f(2), 2);
  EXPECT_NEAR(series.predict(5).item<float>(), f(5).item<float>(), 1e-6);
  series.computed(f(6), 6);
  EXPECT_NEAR(series.predict(9).item<float>(), f(9).item<float>(), 1e-6);
}

// The small Flux and the noise of tests/reference/cache_vectors.py.
class SmallFlux : public ::testing::Test {
 protected:
  SmallFlux() : file_(vectors("caches.safetensors")) {
    model_ = denoiser_from_folder(folder(), at::kCPU, at::kFloat);
    const at::Tensor sigmas = file_.tensor("sigmas");
    sigmas_.assign(sigmas.const_data_ptr<float>(), sigmas.const_data_ptr<float>() + sigmas.numel());
    condition_.text = file_.tensor("text");
    condition_.pooled = file_.tensor("pooled");
    x_ = latent("noise");
  }
  static std::string folder() {
    const char* named = std::getenv("TRIREME_DIT_VECTORS");
    const auto there = std::filesystem::path(named ? named : "") / "flux_cache";
    return named && std::filesystem::exists(there) ? there.string() : test::reference_file("dit/flux_cache");
  }
  // [1, tokens, 16] of the file, channels of a token (channel, row, column).
  at::Tensor latent(const std::string& name) const {
    const at::Tensor grid = file_.tensor("grid"), tokens = file_.tensor(name);
    const auto rows = grid[0].item<std::int64_t>(), columns = grid[1].item<std::int64_t>();
    return sdit::latent_of(tokens, {1, tokens.size(2) / 4, 1, 2 * rows, 2 * columns}, {});
  }
  std::int64_t steps() const { return std::int64_t(sigmas_.size()) - 1; }
  at::Tensor velocity(const at::Tensor& x, double sigma, const DitHooks& hooks) {
    const at::NoGradGuard no_grad;
    return model_->forward(x, at::full({x.size(0)}, sigma, at::kFloat), condition_, hooks);
  }
  at::Tensor sample(sdit::StepCache& cache) {
    at::Tensor x = x_;
    for (std::int64_t i = 0; i < steps(); ++i) {
      cache.step({i, steps(), sigmas_[std::size_t(i)]});
      x = x + (sigmas_[std::size_t(i + 1)] - sigmas_[std::size_t(i)]) *
                  velocity(x, sigmas_[std::size_t(i)], {.blocks = &cache});
    }
    return x;
  }
  nlohmann::json settings(const std::string& arm) const { return nlohmann::json::parse(file_.metadata().at(arm)); }
  // S8: what ran in each step, and where the sampling ended.
  void expect(const std::string& arm, const at::Tensor& final, const std::vector<bool>& computed) {
    const at::Tensor ran = file_.tensor("computed_" + arm);
    for (std::int64_t i = 0; i < steps(); ++i)
      EXPECT_EQ(bool(computed[std::size_t(i)]), ran[i].item<std::uint8_t>() != 0) << arm << " step " << i;
    EXPECT_LE((final - latent("final_" + arm)).abs().max().item<double>(), 1e-4) << arm;
  }
  template <class Cache, class Rule>
  void expect(const std::string& arm, const Rule& rule) {
    Cache cache(rule);
    const at::Tensor final = sample(cache);
    expect(arm, final, cache.computed());
    cache.forget();
    EXPECT_TRUE(sample(cache).equal(final)) << arm << " begins anew after forget()";
  }
  std::vector<std::string> arms(const std::string& begin) const {
    std::vector<std::string> all;
    for (const auto& [name, text] : file_.metadata())
      if (name.starts_with(begin)) all.push_back(name);
    EXPECT_GE(all.size(), 1u) << begin;
    return all;
  }

  Safetensors file_;
  std::unique_ptr<Denoiser> model_;
  std::vector<double> sigmas_;
  Conditioning condition_;
  at::Tensor x_;
};

TEST_F(SmallFlux, FirstBlockCacheDecidesAsDiffusers) {
  for (const auto& arm : arms("first_block"))
    expect<sdit::FirstBlockCache>(arm, sdit::FirstBlockCache::Rule{.threshold = settings(arm)["threshold"]});
}

TEST_F(SmallFlux, AttentionBroadcastDecidesAsDiffusers) {
  for (const auto& arm : arms("pab")) {
    const auto s = settings(arm);
    expect<sdit::AttentionBroadcast>(
        arm, sdit::AttentionBroadcast::Rule{.every = s["spatial"], .low = s["range"][0], .high = s["range"][1]});
  }
}

TEST_F(SmallFlux, TaylorSeerPredictsAsDiffusers) {
  for (const auto& arm : arms("taylor")) {
    const auto s = settings(arm);
    const sdit::TaylorSeer::Rule rule{.interval = s["interval"], .warmup = s["warmup"], .order = s["order"]};
    if (!s["lite"].get<bool>()) {
      expect<sdit::TaylorSeer>(arm, rule);
      continue;
    }
    TaylorSeries series(rule.order);
    std::vector<bool> ran;
    at::Tensor x = x_;
    for (std::int64_t i = 0; i < steps(); ++i) {
      ran.push_back(sdit::TaylorSeer::computes(rule, i));
      if (ran.back()) series.computed(velocity(x, sigmas_[std::size_t(i)], {}), i);
      x = x + (sigmas_[std::size_t(i + 1)] - sigmas_[std::size_t(i)]) * series.predict(i);
    }
    expect(arm, x, ran);
  }
}

TEST_F(SmallFlux, TeaCacheDecidesAsTheTranscript) {
  for (const auto& arm : arms("teacache")) {
    const auto s = settings(arm);
    expect<sdit::TeaCache>(arm, sdit::TeaCache::Rule{s["polynomial"].get<std::vector<double>>(), s["threshold"], 1});
  }
}

// Blocks whose part grows by the same from step to step are predicted exactly; of the warm-up's steps only the last one
// counts, as in cache-dit.
TEST(FirstBlockCache, FollowsASeriesOfItsOrder) {
  sdit::FirstBlockCache cache({.threshold = 1e6, .warmup = 3, .most_in_a_row = 2, .taylor = 1});
  const at::Tensor in = randn({1, 4, 3}, 1), a = randn({1, 4, 3}, 2), b = randn({1, 4, 3}, 3);
  for (std::int64_t step = 0; step < 9; ++step) {
    cache.step({step, 9, 1});
    const double known = step == 3 || step == 4 ? 2 : double(step);
    const BlockStreams first{in + 1, in + 2}, out{first.image + a + b * known, first.text - a + b * known};
    const auto instead = cache.after_first_block({in, in}, first);
    EXPECT_EQ(instead.has_value(), step >= 3 && step % 3 != 2) << step;
    if (!instead) {
      cache.after_blocks({in, in}, first, out);
      continue;
    }
    EXPECT_LE((instead->image - out.image).abs().max().item<double>(), 1e-5) << step;
    EXPECT_LE((instead->text - out.text).abs().max().item<double>(), 1e-5) << step;
  }
}

// S6. After a dense step nothing is left of what came before it.
TEST_F(SmallFlux, ADenseResetForgetsTheStepsBefore) {
  const at::Tensor active = at::arange(5, 17, at::kLong).unsqueeze(0);
  for (const auto keys : {TokenSet::Keys::post_rope, TokenSet::Keys::pre_rope}) {
    TokenSet used(keys), fresh(keys);
    const auto v = [&](TokenSet& set, double sigma) { return velocity(x_ * sigma, sigma, {.tokens = &set}); };
    used.dense();
    v(used, 1);
    used.choose(active);
    v(used, 0.9);
    used.dense(), fresh.dense();
    EXPECT_TRUE(v(used, 0.8).equal(v(fresh, 0.8)));
    used.choose(active), fresh.choose(active);
    EXPECT_TRUE(v(used, 0.7).equal(v(fresh, 0.7)));
  }
}

TEST(TeaCacheFit, FindsThePolynomialAndThresholds) {
  const std::vector<double> wanted = {40, -30, 9, 0.8, 0.01};
  std::vector<sdit::StepChanges> pictures(3);
  Rng rng(1, "changes");
  for (auto& p : pictures)
    for (int i = 0; i < 29; ++i) {
      const double x = 0.02 + 0.3 * rng.uniform();
      p.input.push_back(x);
      p.output.push_back((((40 * x - 30) * x + 9) * x + 0.8) * x + 0.01);
    }
  const auto fit = sdit::fit_teacache(pictures, 1);
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(fit.polynomial[std::size_t(i)], wanted[std::size_t(i)], 1e-6);
  EXPECT_LE(fit.error, 1e-9);
  for (std::size_t i = 0; i < fit.shares.size(); ++i) {
    double ran = 0;
    for (const auto& p : pictures) ran += double(sdit::steps_computed(p, fit.polynomial, fit.thresholds[i], 1));
    EXPECT_LE(ran / 90, fit.shares[i]);
    EXPECT_GE(ran / 90, fit.shares[i] - 0.1);
  }
  const std::string path = std::filesystem::temp_directory_path() / ("fit" + std::to_string(::getpid()) + ".json");
  sdit::write_fit(path, fit);
  EXPECT_EQ(sdit::read_fit(path).polynomial, fit.polynomial);
  EXPECT_EQ(sdit::threshold_of(sdit::read_fit(path), 0.5), fit.thresholds[2]);
  EXPECT_THROW(sdit::threshold_of(fit, 0.9), UsageError);
  std::filesystem::remove(path);
  EXPECT_THROW(sdit::read_fit(path), DataError);
  EXPECT_NE(test::said([&] { sdit::read_fit(path + "x"); }).find("recipes/sdit/fit.yaml"), std::string::npos);
  EXPECT_THROW(sdit::fit_teacache({}, 1), UsageError);
}

// The methods through their seam: keys as YAML, a model of random weights.
class Methods : public SmallFlux {
 protected:
  struct Ran {
    at::Tensor x;
    nlohmann::json report;
    at::Tensor map;
  };
  // `resume_after`: the state is saved after that step and a new method goes on with it.
  Ran run(const std::string& method, const std::string& keys, Communicator& comm, std::int64_t batch, Denoiser& model,
          SequenceParallel* parallel = nullptr, Communicator* halves = nullptr) {
    auto sampler = make(method, keys);
    SampleContext context(comm, model, *codec_, model.device(), at::kFloat);
    context.parallel = parallel, context.halves = halves;
    context.steps = steps();
    sampler->setup(context);
    Sampling s = begin(batch);
    s.x = s.x.to(model.device());
    s.condition.text = s.condition.text.to(model.device());
    s.condition.pooled = s.condition.pooled.to(model.device());
    if (guidance_ != 1) {
      s.guidance = guidance_, s.no_condition = s.condition;
      s.no_condition.text = at::zeros_like(s.condition.text);
    }
    sampler->begin(s, context);
    const at::NoGradGuard no_grad;
    while (s.step < s.steps()) {
      const double from = s.sigma(), to = s.sigmas[std::size_t(s.step + 1)];
      s.x = euler_step(s.x, sampler->velocity(s, context), from, to);
      ++s.step;
      sampler->stepped(s, context);
    }
    const auto maps = sampler->maps();
    return {s.x.cpu(), sampler->report(), maps.empty() ? at::Tensor() : maps[0].values.cpu()};
  }
  static std::unique_ptr<Sampler> make(const std::string& method, const std::string& keys) {
    auto sampler = Samplers::create(method);
    Config::parse(method + ": {" + keys + "}", "test.yaml").read([&](Fields& f) { f.group(method, *sampler, ""); });
    return sampler;
  }
  Sampling begin(std::int64_t batch) const {
    Sampling s;
    for (std::int64_t i = 0; i < batch; ++i) s.prompts.push_back({"", std::uint64_t(i), i});
    s.condition.text = condition_.text.repeat({batch, 1, 1});
    s.condition.pooled = condition_.pooled.repeat({batch, 1});
    s.x = drawn_noise(s.prompts, 0, x_[0].sizes(), at::kCPU);
    s.grid = model_->grid(s.x.sizes());
    return s;
  }
  Ran run(const std::string& method, const std::string& keys, std::int64_t batch = 1) {
    Ran ran;
    run_loopback(1, [&](Communicator& comm) { ran = run(method, keys, comm, batch, *model_); });
    return ran;
  }
  std::unique_ptr<LatentCodec> codec_ = latent_codec(4, 8);
  double guidance_ = 1;
};

const std::string few = "warmup: 3, resets: [8], round_to: 1, ";

// S1 at the level of methods.
TEST_F(Methods, EverythingComputedIsPlain) {
  const at::Tensor plain = run("plain", "").x;
  for (const std::string selector : {"quickshift", "ras", "random", "error"})
    EXPECT_LE((run("sdit", few + "ratio: 1, selector: " + selector).x - plain).abs().max().item<double>(), 1e-5);
  EXPECT_LE((run("ras", "sample_ratio: 1, start: 3, end: 14, resets: [8]").x - plain).abs().max().item<double>(), 1e-5);
  EXPECT_LE((run("random_tokens", few + "ratio: 1").x - plain).abs().max().item<double>(), 1e-5);
  EXPECT_TRUE(run("first_block", "threshold: 0").x.equal(plain));
  EXPECT_TRUE(run("teacache", "threshold: 0, polynomial: [0, 0, 0, 1, 0]").x.equal(plain));
  EXPECT_TRUE(run("taylor_seer", "interval: 1").x.equal(plain));
  EXPECT_TRUE(run("pab", "every: 1").x.equal(plain));
}

TEST_F(Methods, SparseStepsComputeTheirShareAndStayNear) {
  const at::Tensor plain = run("plain", "").x;
  const double way = (plain - drawn_noise(0, 0, x_[0].sizes(), at::kCPU)).norm().item<double>();
  for (const std::string keys :
       {"selector: quickshift", "selector: quickshift, aging: 1, dilate: 0, period: [1, 2, 4]", "selector: ras",
        "selector: error", "selector: random, order: 2", "uncut: true", "ratio_counts: regions", "k_cache: pre_rope"}) {
    const Ran ran = run("sdit", few + keys, 2);
    EXPECT_EQ(ran.report["computed_share"].size(), 14u) << keys;
    if (keys.find("uncut") == keys.npos && keys.find("regions") == keys.npos) {
      EXPECT_NEAR(ran.report["mean_share"].get<double>(), (4 + 10 * 0.5) / 14, 1e-9) << keys;
    }
    EXPECT_NEAR(ran.map.mean().item<double>(), ran.report["mean_share"].get<double>(), 1e-6) << keys;
    EXPECT_LT((ran.x.narrow(0, 0, 1) - plain).norm().item<double>(), 0.5 * way) << keys;
  }
}

// Judging a choice at a dense step changes no picture.
TEST_F(Methods, DenseStepsJudgeWhatWouldHaveBeenChosen) {
  for (const std::string keys : {"selector: quickshift", "selector: error", "selector: random, ratio: 0.25"}) {
    const Ran blind = run("sdit", few + keys, 2), judged = run("sdit", few + keys + ", judge: true", 2);
    EXPECT_TRUE(judged.x.equal(blind.x)) << keys;
    EXPECT_FALSE(blind.report.contains("caught"));
    ASSERT_EQ(judged.report["caught"].size(), 1u);  // the reset
    const double caught = judged.report["caught"][0], most = judged.report["most"][0];
    EXPECT_GT(caught, 0) << keys;
    EXPECT_GE(most, caught) << keys;
    EXPECT_GE(most, keys.find("0.25") == keys.npos ? 0.5 : 0.25) << keys;  // the largest half is no less than a half
    EXPECT_LE(most, 1 + 1e-6) << keys;
  }
}

// With TIDE at twice the trained side: all tokens computed is TIDE itself, though its tables change every step.
TEST_F(Methods, SparseStepsWithTide) {
  const at::Tensor tide = run("tide", "gate_px: 1").x;
  EXPECT_GT((tide - run("plain", "").x).abs().max().item<double>(), 1e-3);
  const std::string with = few + "with_tide: true, tide: {gate_px: 1}, ratio: ";
  EXPECT_LE((run("sdit", with + "1").x - tide).abs().max().item<double>(), 1e-5);
  EXPECT_LT((run("sdit", with + "0.5").x - tide).norm().item<double>(), 0.5 * (tide - x_).norm().item<double>());
}

// A picture does not depend on its neighbours in the batch.
TEST_F(Methods, BatchesDoNotMix) {
  for (const std::string method : {"sdit", "random_tokens"}) {
    const at::Tensor two = run(method, few, 2).x, one = run(method, few, 1).x;
    EXPECT_LE((two.narrow(0, 0, 1) - one).abs().max().item<double>(), 1e-5) << method;
  }
  EXPECT_THROW(run("teacache", "", 2), UsageError);
  EXPECT_THROW(run("sdit", "resets: [40]"), UsageError);
  const auto told = test::said([&] { run("sdit", "resets: [4, 40, 50]"); });
  EXPECT_NE(told.find("sdit.resets: step 40 is none of"), std::string::npos) << told;
  EXPECT_NE(told.find("sdit.resets=[4], or steps=51 or more"), std::string::npos) << told;
}

TEST_F(Methods, GoOnFromASavedState) {
  run_loopback(1, [&](Communicator& comm) {
    for (const std::string method : {"sdit", "ras"}) {
      const std::string keys = method == "ras" ? "start: 3, end: 14, resets: [8]" : few;
      SampleContext context(comm, *model_, *codec_, at::kCPU, at::kFloat);
      context.steps = steps();
      const at::NoGradGuard no_grad;
      const auto step = [&](Sampler& sampler, Sampling& s) {
        const double from = s.sigma(), to = s.sigmas[std::size_t(s.step + 1)];
        s.x = euler_step(s.x, sampler.velocity(s, context), from, to);
        ++s.step;
      };
      const auto whole = make(method, keys), again = make(method, keys);
      Sampling a = begin(2), b = begin(2);
      whole->setup(context), whole->begin(a, context);
      again->setup(context), again->begin(b, context);
      std::optional<Snapshot> saved;
      while (a.step < a.steps()) {
        step(*whole, a);
        if (a.step == a.steps()) break;
        EXPECT_EQ(whole->may_save(a), a.step < 3 || a.step == 8) << a.step;
        if (a.step != 8) continue;
        saved = Snapshot::take([&](Archive& ar) { whole->state(ar); }, 0);
        b.x = a.x.clone(), b.step = a.step;
      }
      const auto folder = std::filesystem::temp_directory_path() / ("sdit" + std::to_string(::getpid()));
      std::filesystem::create_directories(folder);
      Checkpoints checkpoints(folder.string(), 1, comm);
      checkpoints.save(8, std::move(*saved), "{}");
      checkpoints.finish();
      checkpoints.load(*checkpoints.latest()).restore([&](Archive& ar) { again->state(ar); });
      std::filesystem::remove_all(folder);
      while (b.step < b.steps()) step(*again, b);
      EXPECT_TRUE(a.x.equal(b.x)) << method;
      EXPECT_EQ(whole->report()["computed_share"], again->report()["computed_share"]) << method;
      EXPECT_TRUE(whole->maps()[0].values.equal(again->maps()[0].values)) << method;
    }
  });
}

// S5. Every rank comes to the same tokens by itself, and takes an equal part of them.
TEST_F(Methods, RanksChooseAlikeAndShareTokensEvenly) {
  const Ran one = run("sdit", few, 2);
  for (const int ranks : {1, 2, 4}) {
    std::vector<Ran> all(static_cast<std::size_t>(ranks));
    run_loopback(ranks, [&](Communicator& comm) {
      const auto model = denoiser_from_folder(folder(), at::kCPU, at::kFloat);
      const auto parallel = sequence_parallel("ring", comm);
      all[std::size_t(comm.rank())] = run("sdit", few, comm, 2, *model, parallel.get());
      for (const std::int64_t tokens : {12, 13, 64}) {
        const auto [begin, end] = parallel->slice(tokens);
        EXPECT_LE(std::abs(double(end - begin) - double(tokens) / ranks), 1 - 1e-9);
      }
    });
    for (const auto& ran : all) {
      EXPECT_TRUE(ran.map.equal(one.map)) << ranks;
      EXPECT_TRUE(ran.x.equal(all[0].x)) << ranks;
      EXPECT_LE((ran.x - one.x).abs().max().item<double>(), 1e-4) << ranks;
    }
  }
}

// By what all ranks see of the picture, tokens or halves.
TEST_F(Methods, CachesDecideAlikeOnAnyNumberOfRanks) {
  guidance_ = 3;
  for (const auto& [method, keys] : {std::pair<std::string, std::string>{"first_block", "threshold: 0.5, taylor: 1"},
                                     {"teacache", "threshold: 0.3, polynomial: [0, 0, 0, 1, 0]"}}) {
    const Ran one = run(method, keys);
    const auto computed = one.report["computed_steps"].get<int>();
    EXPECT_GT(computed, 2) << method;
    EXPECT_LT(computed, steps() - 2) << method;
    for (const char* kind : {"ring", "halves"})
      run_loopback(2, [&](Communicator& comm) {
        const auto model = denoiser_from_folder(folder(), at::kCPU, at::kFloat);
        const bool tokens = std::string(kind) != "halves";
        const auto parallel = tokens ? sequence_parallel(kind, comm) : nullptr;
        const Ran ran = run(method, keys, comm, 1, *model, parallel.get(), tokens ? nullptr : &comm);
        EXPECT_EQ(ran.report["computed"], one.report["computed"]) << method << ' ' << kind;
        EXPECT_LE((ran.x - one.x).abs().max().item<double>(), 1e-4) << method << ' ' << kind;
      });
  }
}

// Where each rank alone would decide otherwise: what they see together is 0.15 and then 0.25 of 1.
TEST(Caches, DecideByAllRanks) {
  run_loopback(2, [](Communicator& comm) {
    const at::Tensor in = at::zeros({1, 4, 8});
    for (const auto& [change, left_out] : {std::pair{0.3, true}, {0.5, false}}) {
      sdit::FirstBlockCache cache({.threshold = 0.2});
      cache.share(&comm);
      for (const double residual : {1.0, 1 + comm.rank() * change}) {
        cache.step({cache.computed().empty() ? 0 : 1, 4, 0.5});
        const BlockStreams first{in + residual, {}};
        if (!cache.after_first_block({in, {}}, first)) cache.after_blocks({in, {}}, first, first);
      }
      EXPECT_EQ(cache.computed().back(), !left_out) << comm.rank() << ", change " << change;
    }
  });
}

TEST_F(Methods, OnAGpuToo) {
  if (!device_runtime() || device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  const auto model = denoiser_from_folder(folder(), at::Device(at::kCUDA, 0), at::kFloat);
  run_loopback(1, [&](Communicator& comm) {
    const at::Tensor plain = run("plain", "", comm, 2, *model).x;
    const double way = (plain - begin(2).x).norm().item<double>();
    for (const std::string selector : {"quickshift", "ras", "random", "error"}) {
      EXPECT_LE(
          (run("sdit", few + "ratio: 1, selector: " + selector, comm, 2, *model).x - plain).abs().max().item<double>(),
          1e-3);
      const Ran half = run("sdit", few + "selector: " + selector, comm, 2, *model);
      EXPECT_LT((half.x - plain).norm().item<double>(), 0.5 * way) << selector;
      EXPECT_NEAR(half.map.mean().item<double>(), (4 + 10 * 0.5) / 14, 1e-6);
    }
    EXPECT_LT((run("ras", "start: 3, end: 14, resets: [8]", comm, 2, *model).x - plain).norm().item<double>(),
              0.5 * way);
    for (const std::string method : {"teacache", "first_block", "taylor_seer", "pab"})
      EXPECT_TRUE(at::isfinite(run(method, "", comm, 1, *model).x).all().item<bool>()) << method;
  });
}

}  // namespace
}  // namespace trireme

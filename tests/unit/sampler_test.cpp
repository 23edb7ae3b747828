// Sampling from levels and noise to pictures: E1, E2 and G14 of briefs, PNG, guidance on two ranks, `trireme sample` in
// one process: alike on any number of ranks, and after a stop.
#include "framework/sampler.h"

#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "data/file.h"
#include "data/image_text/write_png.h"
#include "data/scenes/range.h"
#include "framework/formats/safetensors.h"
#include "tests/unit/said.h"
#include "trainers/sample/engine.h"
#include "trainers/sample/frames.h"
#include "trainers/sample/model.h"
#include "trainers/sample/report.h"
#include "trainers/sample/run.h"
#include "trainers/sample/scores.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

using test::said;
namespace fs = std::filesystem;

double largest(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

FlowShift mode(const std::string& m) { return {1, m, {256, 0.5, 4096, 1.15}}; }

TEST(FlowSchedule, LevelsOfEveryShift) {
  const auto base = flow_sigmas(4, {}, 0);
  EXPECT_EQ(base, (std::vector<double>{1, 0.75, 0.5, 0.25, 0}));
  const auto still = flow_sigmas(4, {.shift = 3}, 0), dynamic = flow_sigmas(4, mode("0.7"), 0);
  for (int i = 0; i < 4; ++i) {
    const double s = base[i], e = std::exp(0.7);
    EXPECT_NEAR(still[i], 3 * s / (1 + 2 * s), 1e-6);
    EXPECT_NEAR(dynamic[i], e / (e + 1 / s - 1), 1e-6);
  }
  EXPECT_EQ(still.back(), 0);
  EXPECT_EQ(flow_sigmas(1, mode("linear"), 4096), (std::vector<double>{1, 0}));
  // At 4096 x 4096 the linear mode is a collapse: half of the way is noise.
  EXPECT_NEAR(flow_sigmas(2, mode("linear"), 65536)[1], 0.99999, 1e-5);
}

TEST(FlowSchedule, MuOfTheTable) {
  const auto mu = [](const char* m, double side) { return flow_mu(mode(m), side * side / 256); };
  EXPECT_NEAR(mu("log", 1024), 1.15, 5e-3);
  EXPECT_NEAR(mu("log", 2048), 1.475, 5e-4);
  EXPECT_NEAR(mu("log", 3072), 1.665, 5e-4);
  EXPECT_NEAR(mu("log", 4096), 1.80, 5e-3);
  EXPECT_NEAR(mu("sqrt", 1024), 1.15, 1e-9);
  EXPECT_NEAR(mu("sqrt", 4096), 3.75, 5e-3);
  EXPECT_NEAR(mu("linear", 1024), 1.15, 1e-9);
  EXPECT_NEAR(mu("linear", 4096), 11.55, 1e-9);
  EXPECT_NEAR(mu("linear", 256), 0.5, 1e-9);
  EXPECT_NEAR(mu("clamp", 4096), 1.15, 1e-9);
  EXPECT_NEAR(mu("-0.25", 4096), -0.25, 0);
  EXPECT_NE(said([] { flow_mu(mode("cubic"), 4); }).find("linear, sqrt, log, clamp"), std::string::npos);
  EXPECT_FALSE(is_mu_mode("nan") || is_mu_mode("1x") || is_mu_mode(""));
}

TEST(FlowSchedule, EulerWithTheTrueVelocityRecoversThePicture) {
  const auto x0 = drawn_noise(1, 0, {3, 8, 8}, at::kCPU), e = drawn_noise(2, 0, {3, 8, 8}, at::kCPU);
  for (const int steps : {1, 2, 7, 50}) {
    const auto sigmas = flow_sigmas(steps, mode("log"), 1000);
    auto x = renoise_flow(x0, e, sigmas[0]);
    for (int i = 0; i < steps; ++i) {
      EXPECT_LT(largest(predicted_clean(x, e - x0, sigmas[i]), x0), 2e-6);
      x = euler_step(x, e - x0, sigmas[i], sigmas[i + 1]);
    }
    EXPECT_LT(largest(x, x0), 2e-6) << steps;
  }
}

TEST(FlowSchedule, NoiseIsPutBackInTwoFormsThatDiffer) {
  const auto x = drawn_noise(1, 0, {64, 64}, at::kCPU), e = drawn_noise(2, 0, {64, 64}, at::kCPU);
  EXPECT_LT(largest(renoise_flow(x, e, 0.3), 0.7 * x + 0.3 * e), 1e-6);
  EXPECT_LT(largest(renoise_ddim(x, e, 0.36, 0.9), std::sqrt(0.4) * x + std::sqrt(0.6) * e), 1e-6);
  EXPECT_NEAR(renoise_ddim(x, e, 0.49).std().item<double>(), 1, 0.03);  // keeps the variance
  EXPECT_NEAR(renoise_flow(x, e, 0.3).std().item<double>(), std::sqrt(0.58), 0.03);
}

TEST(Noise, FollowsFromSeedAndElementAlone) {
  const auto one = drawn_noise(7, 0, {4, 10, 10}, at::kCPU);
  EXPECT_NEAR(one.mean().item<double>(), 0, 0.15);
  EXPECT_NEAR(one.std().item<double>(), 1, 0.1);
  const std::vector<Prompt> prompts = {{"", 3, 0}, {"", 7, 1}};
  EXPECT_TRUE(at::equal(drawn_noise(prompts, 0, {4, 10, 10}, at::kCPU)[1], one));
  EXPECT_TRUE(at::equal(drawn_noise(7, 0, {400}, at::kCPU), one.flatten()));
  EXPECT_FALSE(at::equal(drawn_noise(7, 1, {4, 10, 10}, at::kCPU), one));
}

TEST(Latents, PatchesAreThereAndBackAndOthersAreRefused) {
  const auto pixels = drawn_noise(1, 0, {2, 3, 2, 4, 6}, at::kCPU);
  EXPECT_TRUE(at::equal(latent_codec(3, 1)->encode(pixels), pixels));
  const auto codec = latent_codec(12, 2);
  const auto latents = codec->encode(pixels);
  EXPECT_EQ(latents.sizes(), (at::IntArrayRef{2, 12, 2, 2, 3}));
  EXPECT_TRUE(at::equal(codec->decode(latents), pixels));
  EXPECT_TRUE(at::equal(latents.select(1, 4 + 1), pixels.select(1, 1).slice(2, 0, 4, 2).slice(3, 1, 6, 2)));
  const auto opaque = latent_codec(16, 8);
  EXPECT_FALSE(opaque->sees_pixels());
  EXPECT_NE(said([&] { opaque->decode(latents); }).find("autoencoder"), std::string::npos);
}

Image noise_image(int width, int height, std::uint64_t seed) {
  Image image{width, height, {}};
  const auto v = drawn_noise(seed, 0, {height * width * 3}, at::kCPU);
  for (int i = 0; i < height * width * 3; ++i)
    image.rgb.push_back(std::uint8_t(std::lround(v[i].item<double>() * 40) + 128));
  return image;
}

TEST(Png, KeepsPixelsFramesAndTexts) {
  const std::vector<Image> frames = {noise_image(13, 5, 1), noise_image(13, 5, 2), noise_image(13, 5, 3)};
  const PngTexts texts = {{"prompt", "ein gr\xc3\xbcner Kreis"}, {"seed", "18446744073709551615"}, {"settings", ""}};
  const auto still = encode_png(std::span(frames).first(1), texts), moving = encode_png(frames, texts, 12.5);
  EXPECT_EQ(png_texts(still, "a.png"), texts);
  EXPECT_EQ(png_texts(moving, "a.png"), texts);
  for (const auto& file : {still, moving}) EXPECT_EQ(decode_image(file, "a.png").rgb, frames[0].rgb);
  // A frame of the video is what stands in its fdAT: as IDAT it is that picture.
  const std::string_view text(reinterpret_cast<const char*>(moving.data()), moving.size());
  EXPECT_NE(text.find("acTL"), text.npos);
  std::size_t frame_chunks = 0;
  for (std::size_t at = text.find("fdAT"); at != text.npos; at = text.find("fdAT", at + 1)) ++frame_chunks;
  EXPECT_EQ(frame_chunks, 2u);
  const PngFrames read(moving, "a.png");
  ASSERT_EQ(read.size(), 3);
  for (const int i : {2, 0, 1}) EXPECT_EQ(read.read(i).rgb, frames[std::size_t(i)].rgb) << i;
  EXPECT_EQ(PngFrames(still, "a.png").size(), 1);
  // None is decoded before it is asked for.
  auto broken = moving;
  const auto last = text.rfind("fdAT");
  for (std::size_t i = 20; i < 60; ++i) broken[last + i] ^= 0xff;
  const PngFrames first(broken, "a.png");
  EXPECT_EQ(first.read(1).rgb, frames[1].rgb);
  EXPECT_THROW(first.read(2), BrokenPicture);
  for (std::size_t cut = 0; cut < still.size(); ++cut)
    EXPECT_THROW(png_texts(std::span(still).first(cut), "a.png"), DataError) << cut;
  for (std::size_t cut = 0; cut < moving.size(); cut += 7)
    EXPECT_THROW(PngFrames(std::span(moving).first(cut), "a.png"), DataError) << cut;
}

// v = weight of the text's first number; refuses nothing.
class Echo final : public Denoiser {
 public:
  Echo() { info_.channels = 3, info_.patch = 1, info_.latent_factor = 1, info_.text_width = 2; }
  const DenoiserInfo& info() const override { return info_; }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& c, const DitHooks&) override {
    ++forwards, rows += x.size(0);
    return x * c.text.select(2, 0).mean(1).view({-1, 1, 1, 1, 1}) + t.view({-1, 1, 1, 1, 1});
  }
  RopeTables rope(const Grid&, std::int64_t, const Offsets&) const override { return {}; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return {}; }
  const nlohmann::json& config() const override { return config_; }
  int forwards = 0;
  std::int64_t rows = 0;

 private:
  DenoiserInfo info_;
  nlohmann::json config_;
};

Sampling echo_sampling(std::int64_t texts, std::int64_t no_texts) {
  Sampling s;
  s.condition.text = at::full({2, texts, 2}, 3.0);
  if (no_texts) s.no_condition.text = at::full({2, no_texts, 2}, 1.0);
  s.guidance = 2.5;
  s.x = drawn_noise(1, 0, {2, 3, 1, 4, 4}, at::kCPU);
  return s;
}

TEST(Guidance, BothHalvesInOneBatchOrOnTwoRanks) {
  const auto codec = latent_codec(3, 1);
  const auto check = [&](Communicator& comm, Communicator* halves, Sampling s, int forwards, std::int64_t rows) {
    Echo model;
    SampleContext context(comm, model, *codec, at::kCPU, at::kFloat);
    context.halves = halves;
    const auto v = guided(context, s, s.x, 0.25);
    const double scale = s.no_condition.text.defined() ? 1 + s.guidance * (3 - 1) : 3;
    EXPECT_LT(largest(v, scale * s.x + 0.25), 1e-5);
    EXPECT_EQ(model.forwards, forwards);
    EXPECT_EQ(model.rows, rows);
  };
  const auto self = make_self();
  check(*self, nullptr, echo_sampling(5, 5), 1, 4);
  check(*self, nullptr, echo_sampling(5, 3), 2, 4);
  check(*self, nullptr, echo_sampling(5, 0), 1, 2);
  run_loopback(2, [&](Communicator& pair) { check(pair, &pair, echo_sampling(5, 5), 1, 2); });
}

// What jobs tell on stdout is not the test's.
class Quiet {
 public:
  Quiet() : before_(std::cout.rdbuf(said_.rdbuf())) {}
  ~Quiet() { std::cout.rdbuf(before_); }

 private:
  std::ostringstream said_;
  std::streambuf* before_;
};

// A folder with a tiny random model of FLUX's layout, and jobs beside it.
class SampleJobs : public ::testing::Test {
 protected:
  SampleJobs() {
    std::string name = (fs::temp_directory_path() / "trireme-XXXXXX").string();
    dir_ = mkdtemp(name.data());
    write("config.json",
          R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 48, "num_layers": 1,
              "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 24,
              "pooled_projection_dim": 16, "guidance_embeds": false, "axes_dims_rope": [8, 12, 12]})");
    write("trireme.json", R"({"latent_factor": 2, "base_side": 16, "base_text": 8})");
    write("job.yaml", "model: " + dir_ +
                          "/config.json\nweights: random\nprompts: [a red circle, two, three]\nsize: [16, 24]\n"
                          "steps: 6\nguidance: 2\nbatch: 2\nthreads: 1\n");
  }
  ~SampleJobs() override { fs::remove_all(dir_); }

  void write(const std::string& name, const std::string& text) const { std::ofstream(dir_ + "/" + name) << text; }
  static std::string read(const std::string& path) {
    const auto bytes = read_file(path, 1 << 26);
    return {bytes.begin(), bytes.end()};
  }
  int run(const std::string& out, std::vector<std::string> overrides = {}, Communicator* comm = nullptr) const {
    const auto self = make_self();
    const Quiet quiet;
    const int code =
        run_sample({dir_ + "/job.yaml", dir_ + "/" + out, std::move(overrides), false}, comm ? *comm : *self, 1);
    return code;
  }
  std::string refused(std::vector<std::string> overrides) const {
    return said([&] { run("refused", std::move(overrides)); });
  }
  std::string picture(const std::string& out, const std::string& name) const { return read(dir_ + "/" + out + name); }
  std::string dir_;
};

TEST_F(SampleJobs, MakePicturesASheetAndAReport) {
  ASSERT_EQ(run("o", {"arms={plain: [], long: ['steps=8', 'size=[32, 32]'], twice: [count=2]}"}), 0);
  const auto png = read_file(dir_ + "/o/long/00001.png", 1 << 20);
  const Image image = decode_image(png, "png");
  EXPECT_EQ(image.width, 32);
  const auto texts = png_texts(png, "png");
  EXPECT_EQ(texts[1], std::make_pair(std::string("prompt"), std::string("two")));
  EXPECT_NE(texts[3].second.find("steps: 8"), std::string::npos);
  const auto report = nlohmann::json::parse(picture("o", "/report.json"));
  EXPECT_EQ(report["arms"].size(), 3u);
  EXPECT_EQ(report["arms"][1]["batches"][0]["sigmas"].size(), 9u);
  EXPECT_EQ(report["arms"][2]["pictures"].size(), 6u);
  EXPECT_EQ(report["arms"][2]["pictures"][5]["seed"], 1);
  EXPECT_GT(load_image(dir_ + "/o/sheet.png").height, 3 * 160);
  EXPECT_NE(picture("o", "/report.html").find("long/00002.png"), std::string::npos);
  // Another arm's pictures of the same prompt and seed are the same, whatever else its batch holds: but for a level,
  // since a product's sums depend on how many rows it has.
  const Image one = load_image(dir_ + "/o/twice/00004.png"), other = load_image(dir_ + "/o/plain/00002.png");
  ASSERT_EQ(one.rgb.size(), other.rgb.size());
  for (std::size_t i = 0; i < one.rgb.size(); ++i) EXPECT_NEAR(int(one.rgb[i]), int(other.rgb[i]), 1) << i;
  // Once more: nothing is drawn again. Other settings: refused.
  const auto before = fs::last_write_time(dir_ + "/o/plain/00000.png");
  EXPECT_EQ(run("o", {"arms={plain: [], other: [seed=5]}", "save_every=3"}), 0);
  EXPECT_EQ(fs::last_write_time(dir_ + "/o/plain/00000.png"), before);
  EXPECT_SAYS(said([&] { run("o", {"arms={plain: ['seed=1', 'steps=5']}"}); }), "other settings: seed, steps");
  // The model's files are others: refused, and the same once they are back.
  const std::string model = read(dir_ + "/config.json"), said_before = "arms={plain: [], other: [seed=5]}";
  write("config.json", model + " ");
  EXPECT_SAYS(said([&] { run("o", {said_before}); }), "holds pictures of other files of");
  write("config.json", model);
  EXPECT_EQ(run("o", {said_before, "save_every=3"}), 0);
}

// Of a video every frame counts: two whose first frames are equal are not.
TEST_F(SampleJobs, JudgeEveryFrameOfAVideo) {
  const auto video = [this](const std::string& folder, const std::vector<Image>& frames) {
    fs::create_directories(dir_ + "/" + folder);
    const auto png = encode_png(frames);
    std::ofstream(dir_ + "/" + folder + "/00000.png", std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), std::ptrdiff_t(png.size()));
  };
  const auto scene = parse_scene("a large red circle in the center on a blue background").value();
  const Image right = render(scene, 64, 64),
              wrong = render(parse_scene("a small white star at the top left on a black background").value(), 64, 64);
  video("a", {right, right}), video("b", {right, wrong}), video("c", {right});
  const auto same = fidelity(1, dir_ + "/a", dir_ + "/a"), other = fidelity(1, dir_ + "/b", dir_ + "/a");
  EXPECT_EQ(same.at("psnr"), 60);
  EXPECT_LT(other.at("psnr"), 45);
  EXPECT_GT(other.at("psnr"), 30) << "the mean over both frames";
  EXPECT_FALSE(other.contains("ms_ssim")) << "five scales want 176 pixels";
  EXPECT_TRUE(fidelity(1, dir_ + "/c", dir_ + "/a").empty());
  const std::vector<ScenePrompt> prompts{{describe(scene), 0}};
  EXPECT_EQ(scene_scores(prompts, dir_ + "/a").mean.at("attribute_accuracy"), 1);
  const double half = scene_scores(prompts, dir_ + "/b").mean.at("attribute_accuracy");
  EXPECT_TRUE(half >= 0.5 && half < 1) << half;
  EXPECT_EQ(video_scores(1, dir_ + "/a").flicker, 0);
  EXPECT_GT(video_scores(1, dir_ + "/b").flicker, 0.01);
  EXPECT_EQ(video_scores(1, dir_ + "/b").frames, 2);
  const Image large = render(scene, 176, 180);
  video("d", {large});
  EXPECT_NEAR(fidelity(1, dir_ + "/d", dir_ + "/d").at("ms_ssim"), 1, 1e-9);
  // The program's report says what was judged.
  ASSERT_EQ(run("moving", {"frames=2", "arms={a: [], b: [seed=5]}", "compare_to=a"}), 0);
  const auto arm = nlohmann::json::parse(picture("moving", "/report.json"))["arms"][1];
  EXPECT_EQ(arm["judged_frames"], 2);
  EXPECT_GT(arm["metrics"]["color_flicker"].get<double>(), 0);
  EXPECT_TRUE(arm["metrics"].contains("ssim"));
  EXPECT_NE(picture("moving", "/report.html").find("means of 2 frames"), std::string::npos);
}

// The numbers are those of all frames together, to the bit, and only frames that are compared are in memory.
TEST_F(SampleJobs, JudgeALongVideoFrameByFrame) {
  constexpr int count = 9;
  const auto scene = parse_scene("a large red circle in the center on a blue background").value();
  const auto video = [&](const std::string& folder, std::uint64_t seed) {
    std::vector<Image> frames;
    for (int f = 0; f < count; ++f) {
      frames.push_back(render(scene, 64, 64));
      const Image noise = noise_image(64, 64, seed + std::uint64_t(f));
      for (std::size_t i = 0; i < noise.rgb.size(); i += 1 + std::size_t(f)) frames.back().rgb[i] = noise.rgb[i];
    }
    fs::create_directories(dir_ + "/" + folder);
    const auto png = encode_png(frames);
    std::ofstream(dir_ + "/" + folder + "/00000.png", std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), std::ptrdiff_t(png.size()));
    return frames;
  };
  const auto a = video("a", 1), b = video("b", 100);
  std::map<std::string, double> means;
  ColorFlicker flicker;
  double texture = 0;
  std::vector<std::vector<float>> values;  // of all frames of both
  for (const auto* frames : {&a, &b})
    for (const Image& frame : *frames) values.push_back(planes_of(frame));
  const auto drawn = planes_of(render(scene, 64, 64));
  for (std::size_t f = 0; f < count; ++f) {
    const PicturePlanes p{values[f].data(), 3, 64, 64}, q{values[count + f].data(), 3, 64, 64};
    means["psnr"] += psnr(p, q) / count, means["ssim"] += ssim(p, q) / count;
    flicker.add(p);
    texture += spectrum_distance(radial_spectrum(p), radial_spectrum({drawn.data(), 3, 64, 64})) / count;
  }
  const auto at_once = [](auto&& judge) {
    Frame::most_alive = 0;
    const auto result = judge();
    EXPECT_EQ(Frame::alive, 0);
    return std::pair(result, Frame::most_alive.load());
  };
  const auto compared = at_once([&] { return fidelity(1, dir_ + "/a", dir_ + "/b"); });
  EXPECT_EQ(compared.first, means);
  EXPECT_EQ(compared.second, 2);
  const auto moving = at_once([&] { return video_scores(1, dir_ + "/a"); });
  EXPECT_EQ(moving.first.frames, count);
  EXPECT_EQ(moving.first.flicker, flicker.mean());
  EXPECT_EQ(moving.second, 1);
  const auto read = at_once([&] { return scene_scores({{describe(scene), 0}}, dir_ + "/a"); });
  EXPECT_EQ(read.first.mean.at("spectrum_distance"), texture);
  EXPECT_EQ(read.second, 1);
  std::ofstream(dir_ + "/a/00000.png", std::ios::trunc).flush();
  EXPECT_SAYS(said([&] { video_scores(1, dir_ + "/a"); }), "00000.png: is empty");
}

// Cut anywhere, a job has as many pictures of one arm as of another, and reports those up to a gap.
TEST_F(SampleJobs, DrawArmsInTurn) {
  const std::vector<std::string> overrides = {"arms={a: [], b: [steps=3]}", "batch=1"};
  ASSERT_EQ(run("turns", overrides), 0);
  const auto when = [&](const std::string& batch) { return fs::last_write_time(dir_ + "/turns/" + batch + ".json"); };
  EXPECT_LE(when("a/batch_00000"), when("b/batch_00000"));
  EXPECT_LE(when("b/batch_00000"), when("a/batch_00001"));
  EXPECT_LE(when("a/batch_00001"), when("b/batch_00001"));
  EXPECT_SAYS(refused({"arms={a: [], b: [watchdog.later=5]}"}),
              "arm b changes device, communicator, threads or watchdog");
  fs::remove(dir_ + "/turns/a/batch_00001.json");
  const SampleJob job = read_job(dir_ + "/job.yaml", overrides);
  EXPECT_EQ(arm_report(job.arms[0], dir_ + "/turns/a")["pictures"].size(), 1u);
}

TEST_F(SampleJobs, AreTheSameOnAnyNumberOfRanks) {
  ASSERT_EQ(run("one", {"latents=true"}), 0);
  for (const int ranks : {2, 3}) {
    const std::string out = "on" + std::to_string(ranks);
    const Quiet quiet;
    run_loopback(ranks, [&](Communicator& world) {
      EXPECT_EQ(run_sample({dir_ + "/job.yaml", dir_ + "/" + out, {"latents=true"}, false}, world, ranks), 0);
    });
    for (const char* name : {"/plain/00000.png", "/plain/00001.safetensors", "/plain/00002.safetensors"})
      EXPECT_EQ(picture("one", name), picture(out, name)) << ranks << name;
  }
  const auto a = Safetensors(dir_ + "/one/plain/00001.safetensors").tensor("latents");
  const std::vector<std::pair<int, std::vector<std::string>>> shared = {
      {2, {"guidance_parallel=true"}},
      {2, {"sequence=ulysses"}},
      {3, {"sequence=ring"}},
      {4, {"sequence=ring", "guidance_parallel=true"}}};
  for (const auto& [ranks, how] : shared) {
    const std::string out = dir_ + "/shared" + how[0].substr(how[0].find('=') + 1) + std::to_string(ranks);
    auto overrides = how;
    overrides.push_back("latents=true");
    const Quiet quiet;
    run_loopback(ranks, [&, n = ranks](Communicator& world) {
      EXPECT_EQ(run_sample({dir_ + "/job.yaml", out, overrides, false}, world, n), 0);
    });
    const auto batch = nlohmann::json::parse(read(out + "/plain/batch_00000.json"));
    EXPECT_EQ(batch["ranks"], ranks);
    EXPECT_GE(batch["collectives_a_step"].get<double>(), 1) << how[0];
    EXPECT_GT(batch["bytes_a_step"].get<double>(), 0) << how[0];
    // Two pictures of 12 x 8 x 12 in f32 each way, and nothing else.
    if (how.size() == 1 && how[0] == "guidance_parallel=true") {
      EXPECT_EQ(batch["bytes_a_step"], 2 * 12 * 8 * 12 * 4);
    }
    const auto b = Safetensors(out + "/plain/00001.safetensors").tensor("latents");
    EXPECT_LT(largest(a, b), 1e-5 * a.std().item<double>()) << how[0] << " on " << ranks;
  }
}

// Stopped after any step, with its caches of one step, it ends as if it had not been.
TEST_F(SampleJobs, GoOnAfterAStopWithTheUnbrokenPicture) {
  ASSERT_EQ(run("whole", {"latents=true", "frames=2"}), 0);
  const auto self = make_self();
  const SampleJob job = read_job(dir_ + "/job.yaml", {"latents=true", "frames=2", "save_every=2"});
  const auto& c = job.arms[0];
  const auto config = read_model_config(c);
  const auto model = load_model(c, config, at::kCPU);
  const auto codec = latent_codec(12, 2);
  const auto conditions = read_conditions(c, model->info(), config);
  Traced world(*self);
  Groups groups = make_groups(c, *c.samplers.at("plain"), place(c, world), world);
  SampleContext context(*groups.tensors, *model, *codec, at::kCPU, at::kFloat);
  context.steps = c.steps;
  context.shift = {1, "linear", {16, 0.5, 256, 1.15}};
  Engine engine({c, *c.samplers.at("plain"), *conditions, dir_ + "/broken"}, groups, context);
  fs::create_directories(dir_ + "/broken");
  for (int taken = 0, stop_at = 1; !engine.run(0, [&] { return ++taken == stop_at; }); taken = 0, stop_at = 3) {
  }
  EXPECT_TRUE(engine.done(0));
  EXPECT_EQ(picture("whole", "/plain/00001.safetensors"), picture("broken", "/00001.safetensors"));
  EXPECT_EQ(picture("whole", "/plain/00000.png").size() > 100, true);
  const auto report = nlohmann::json::parse(picture("broken", "/batch_00000.json"));
  EXPECT_EQ(report["resumed_at"], 4);
  EXPECT_FALSE(fs::exists(dir_ + "/broken/state/batch_00000"));
}

// Image to video with drawn weights: latents of the first frame, and the tokens of Wan 2.1's picture encoder.
TEST_F(SampleJobs, DrawTheConditionOfImageToVideo) {
  const std::string wan = R"({"_class_name": "WanTransformer3DModel", "in_channels": 36, "out_channels": 16,
      "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24, "text_dim": 8, "freq_dim": 8)";
  write("i2v.json", wan + "}");
  write("i2v_clip.json", wan + R"(, "image_dim": 10, "added_kv_proj_dim": 24})");
  for (const char* model : {"i2v", "i2v_clip"}) {
    EXPECT_EQ(run(model, {"model=" + dir_ + "/" + model + ".json", "frames=2", "size=[32, 32]", "prompts=[a, b]"}), 0);
    EXPECT_EQ(Safetensors(dir_ + "/" + model + "/plain/00001.safetensors").tensor("latents").size(0), 16);
  }
}

TEST_F(SampleJobs, TakeEmbeddingsAndNoiseFromAFile) {
  const auto text = drawn_noise(5, 0, {2, 4, 24}, at::kCPU), pooled = drawn_noise(6, 0, {2, 16}, at::kCPU);
  const auto noise = drawn_noise(7, 0, {2, 12, 8, 12}, at::kCPU);
  const auto file = dir_ + "/e.safetensors";
  const std::vector<std::string> with = {"embeds=" + file, "prompts=[]", "guidance=1", "latents=true"};
  write_safetensors(file, std::vector<NamedTensor>{{"prompt_embeds", text}, {"pooled", pooled}, {"latents", noise}});
  ASSERT_EQ(run("e", with), 0);
  const auto model =
      random_denoiser(read_model_config(read_job(dir_ + "/job.yaml", {}).arms[0]), 0, at::kCPU, at::kFloat);
  const auto sigmas = flow_sigmas(6, {1, "linear", {16, 0.5, 256, 1.15}}, 4 * 6);
  const at::NoGradGuard no_grad;
  auto x = noise.unsqueeze(2);
  for (int i = 0; i < 6; ++i)
    x = x + (sigmas[i + 1] - sigmas[i]) * model->forward(x, at::full({2}, sigmas[i]), {text, pooled, {}, {}, {}});
  const auto ours = Safetensors(dir_ + "/e/plain/00001.safetensors").tensor("latents");
  EXPECT_LT(largest(ours, x[1]), 1e-4 * x.std().item<double>());

  const auto refused_with = [&](std::vector<NamedTensor> tensors) {
    write_safetensors(file, tensors);
    return refused(with);
  };
  const auto says = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  says(refused_with({{"pooled", pooled}}), "prompt_embeds");
  says(refused_with({{"prompt_embeds", text}}), "pooled");
  says(refused_with({{"prompt_embeds", text.slice(2, 0, 20)}, {"pooled", pooled}}), "24");
  says(refused_with({{"prompt_embeds", text}, {"pooled", pooled[0].unsqueeze(0)}}), "rows");
  says(refused_with({{"prompt_embeds", text}, {"pooled", pooled}, {"poled", pooled}}), "poled");
  says(refused_with({{"prompt_embeds", text / 0.0}, {"pooled", pooled}}), "not finite");
  says(refused_with({{"prompt_embeds", text}, {"pooled", pooled}, {"latents", noise.slice(2, 0, 4)}}), "size");
  std::ofstream(file) << "not safetensors";
  says(refused(with), "e.safetensors");
}

TEST_F(SampleJobs, RefuseWhatCannotBeDrawn) {
  const auto says = [this](std::vector<std::string> overrides, const char* part) {
    const std::string text = refused(std::move(overrides));
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  };
  says({"size=[18, 24]"}, "16 and 20");
  says({"size=[2, 24]"}, "the nearest that are: 4");
  says({"size=[16]"}, "two numbers");
  says({"method=plane"}, "plain");
  says({"mu_mode=cubic"}, "linear");
  says({"model=/none"}, "/none");
  says({"weights=file"}, "no folder");
  says({"prompts=[]"}, "prompts");
  says({"arms={'a/b': []}"}, "folder");
  says({"arms={a: ['arms={}']}"}, "arms themselves");
  says({"methods=[plain, plain]"}, "two arms");
  says({"arms={report.json: []}"}, "beside it");
  says({"arms={a: [], b: [compare_to=c]}"}, "no arm is named c");
  says({"arms={a: [], b: [threads=2]}"}, "whole job's");
  // Models that no machine holds, or whose parts do not fit, before anything of them is made.
  write("deep.json", R"({"_class_name": "FluxTransformer2DModel", "num_layers": 1048576})");
  says({"model=" + dir_ + "/deep.json"}, "65536 tensors");
  write("wide.json", R"({"_class_name": "FluxTransformer2DModel", "attention_head_dim": 1048576,
                         "num_attention_heads": 1048576, "axes_dims_rope": [1048574, 1, 1]})");
  says({"model=" + dir_ + "/wide.json"}, "config.json");
  write("axes.json", R"({"_class_name": "FluxTransformer2DModel", "attention_head_dim": 64})");
  says({"model=" + dir_ + "/axes.json"}, "axes");
  says({"ranks_per_picture=2"}, "groups of 2");
  says({"guidance_parallel=true", "guidance=1"}, "guidance");
  says({"memory_capacity=0.0001"}, "weights");
  says({"memory_capacity=0.0001"}, "but 0.0001 GiB are there");
  const auto planned = [this](const std::vector<std::string>& overrides, int ranks) {
    const SampleJob job = read_job(dir_ + "/job.yaml", overrides);
    return plan_memory(job.arms[0], plan_model(read_model_config(job.arms[0])), ranks).bytes;
  };
  // What a method keeps counts as well, and ranks that share tokens or tiles hold less.
  EXPECT_GT(planned({"method=sdit"}, 1), planned({}, 1));
  EXPECT_LT(planned({"sequence=ring"}, 4), planned({}, 4));
  const std::vector<std::string> tiles{"method=supergen", "size=[64, 64]", "supergen.window=[4, 4]"};
  EXPECT_LT(planned(tiles, 1), planned({"size=[64, 64]"}, 1));
  auto many = tiles, most = tiles;
  many.push_back("supergen.batch=16"), most.push_back("supergen.batch=4096");
  EXPECT_GT(planned(many, 1), planned(tiles, 1));
  EXPECT_LT(planned(most, 1), 20 * planned(many, 1)) << "a picture has no more tiles than that";
  EXPECT_FALSE(fs::exists(dir_ + "/refused/plain/00000.png"));
  EXPECT_NE(document_keys().find("mu_mode"), std::string::npos);
}

}  // namespace
}  // namespace trireme::sample

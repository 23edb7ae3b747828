#include "trainers/sample/scores.h"

#include "data/workers.h"
#include "framework/metrics/pictures.h"
#include "framework/metrics/scene_score.h"
#include "trainers/sample/frames.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <thread>

namespace trireme::sample {
namespace {

Workers all_cores() { return Workers(std::clamp(int(std::thread::hardware_concurrency()), 1, 64)); }

std::string picture_file(const std::string& folder, std::int64_t i) {
  char name[32];
  std::snprintf(name, sizeof name, "/%05lld.png", static_cast<long long>(i));
  return folder + name;
}

std::optional<std::vector<Scene>> scenes_of(const std::vector<ScenePrompt>& prompts) {
  std::vector<Scene> scenes;
  for (const auto& prompt : prompts) {
    const auto scene = parse_scene(prompt.text);
    if (!scene) return std::nullopt;
    scenes.push_back(*scene);
  }
  return scenes;
}

// Possible answers: what is trained by default, and what the prompts say.
SceneRange range_of(const std::vector<Scene>& scenes) {
  SceneRange range;
  const auto add = [](std::vector<int>& all, int word) {
    if (std::find(all.begin(), all.end(), word) == all.end()) all.push_back(word);
  };
  for (const auto& scene : scenes) {
    add(range.colors, scene.ground);
    for (const auto& o : scene.objects) {
      add(range.colors, o.color), add(range.shapes, o.shape), add(range.sizes, o.size);
      add(range.textures, o.texture);
    }
  }
  return range;
}

std::vector<double> spectrum_of(const Image& image) {
  const auto planes = planes_of(image);
  return radial_spectrum({planes.data(), 3, image.height, image.width});
}

}  // namespace

ArmScores scene_scores(const std::vector<ScenePrompt>& prompts, const std::string& folder) {
  const auto scenes = scenes_of(prompts);
  if (!scenes || scenes->empty()) return {};
  const Image first = FramesOf(picture_file(folder, 0)).picture(0);
  if (std::min(first.width, first.height) < 48) return {};
  const SceneReader reader(range_of(*scenes), first.width, first.height);
  std::vector<std::vector<SceneScore>> scores(scenes->size());  // a score a frame
  std::vector<double> textures(scenes->size());
  all_cores().each(std::ssize(scores), [&](std::int64_t at) {
    const auto i = std::size_t(at);
    const FramesOf frames(picture_file(folder, at));
    std::vector<double> drawn;
    for (std::int64_t f = 0; f < frames.size(); ++f) {
      const Frame frame = frames.at(f);
      if (f == 0) drawn = spectrum_of(render((*scenes)[i], frame.image.width, frame.image.height));
      scores[i].push_back(reader.score(frame.image, (*scenes)[i]));
      textures[i] += spectrum_distance(radial_spectrum(frame.planes()), drawn) / double(frames.size());
    }
  });
  ArmScores all;
  std::map<std::uint64_t, double> of_seed;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto mean = mean_scores(scores[i]);
    for (const auto& [name, value] : mean) all.mean[name] += value / double(scores.size());
    for (const SceneScore& frame : scores[i])
      all.accuracy_by_seed[prompts[i].seed] += frame.accuracy / double(scores[i].size());
    of_seed[prompts[i].seed] += 1;
    all.mean["spectrum_distance"] += textures[i] / double(scores.size());
  }
  for (auto& [seed, sum] : all.accuracy_by_seed) sum /= of_seed[seed];
  return all;
}

VideoScores video_scores(std::int64_t count, const std::string& folder) {
  std::vector<VideoScores> each(std::size_t(std::max<std::int64_t>(0, count)));
  all_cores().each(count, [&](std::int64_t i) {
    const FramesOf frames(picture_file(folder, i));
    ColorFlicker flicker;
    for (std::int64_t f = 0; f < frames.size(); ++f) flicker.add(frames.at(f).planes());
    each[std::size_t(i)] = {frames.size(), flicker.mean()};
  });
  VideoScores all;
  for (const auto& one : each) all.frames = one.frames, all.flicker += one.flicker / double(each.size());
  return all;
}

std::map<std::string, double> fidelity(std::int64_t count, const std::string& folder, const std::string& reference) {
  constexpr int all_scales = 11 << 4;  // a side that ms_ssim halves four times
  using Means = std::map<std::string, double>;
  std::vector<Means> each(std::size_t(std::max<std::int64_t>(0, count)));
  std::atomic<bool> all = count > 0;
  all_cores().each(std::ssize(each), [&](std::int64_t i) {
    const std::string mine = picture_file(folder, i), other = picture_file(reference, i);
    if (!all || !std::filesystem::exists(mine) || !std::filesystem::exists(other)) return void(all = false);
    const FramesOf a(mine), b(other);
    if (a.size() != b.size()) return void(all = false);
    Means& means = each[std::size_t(i)];
    const auto share = double(a.size());
    for (std::int64_t f = 0; f < a.size(); ++f) {
      const Frame x = a.at(f), y = b.at(f);
      const int side = std::min(x.image.width, x.image.height);
      if (x.image.width != y.image.width || x.image.height != y.image.height || side < 11) return void(all = false);
      const PicturePlanes p = x.planes(), q = y.planes();
      means["psnr"] += std::min(60.0, psnr(p, q)) / share;
      means["ssim"] += ssim(p, q) / share;
      if (side >= all_scales) means["ms_ssim"] += ms_ssim(p, q) / share;
    }
  });
  if (!all) return {};
  Means mean;
  for (const Means& one : each)
    for (const auto& [name, value] : one) mean[name] += value / double(each.size());
  return mean;
}

}  // namespace trireme::sample

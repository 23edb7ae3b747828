#include "trainers/sample/scores.h"

#include "data/workers.h"
#include "framework/metrics/pictures.h"
#include "framework/metrics/scene_score.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <numeric>
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
  const Image first = load_image(picture_file(folder, 0));
  if (std::min(first.width, first.height) < 48) return {};
  const SceneReader reader(range_of(*scenes), first.width, first.height);
  std::vector<SceneScore> scores(scenes->size());
  std::vector<double> textures(scenes->size());
  all_cores().each(std::ssize(scores), [&](std::int64_t at) {
    const auto i = std::size_t(at);
    const Image picture = load_image(picture_file(folder, at));
    scores[i] = reader.score(picture, (*scenes)[i]);
    textures[i] =
        spectrum_distance(spectrum_of(picture), spectrum_of(render((*scenes)[i], picture.width, picture.height)));
  });
  ArmScores all{mean_scores(scores), {}};
  std::map<std::uint64_t, double> of_seed;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    all.accuracy_by_seed[prompts[i].seed] += scores[i].accuracy, of_seed[prompts[i].seed] += 1;
    all.mean["spectrum_distance"] += textures[i] / double(scores.size());
  }
  for (auto& [seed, sum] : all.accuracy_by_seed) sum /= of_seed[seed];
  return all;
}

std::map<std::string, double> fidelity(std::int64_t count, const std::string& folder, const std::string& reference) {
  std::vector<double> psnrs(std::size_t(std::max<std::int64_t>(0, count))), ssims(psnrs.size());
  std::atomic<bool> all = count > 0;
  all_cores().each(std::ssize(psnrs), [&](std::int64_t i) {
    const std::string mine = picture_file(folder, i), other = picture_file(reference, i);
    if (!all || !std::filesystem::exists(mine) || !std::filesystem::exists(other)) return void(all = false);
    const Image a = load_image(mine), b = load_image(other);
    if (a.width != b.width || a.height != b.height || std::min(a.width, a.height) < 11) return void(all = false);
    const auto x = planes_of(a), y = planes_of(b);
    const PicturePlanes p{x.data(), 3, a.height, a.width}, q{y.data(), 3, a.height, a.width};
    psnrs[std::size_t(i)] = std::min(60.0, psnr(p, q));
    ssims[std::size_t(i)] = ssim(p, q);
  });
  if (!all) return {};
  const auto mean = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
  };
  return {{"psnr", mean(psnrs)}, {"ssim", mean(ssims)}};
}

}  // namespace trireme::sample

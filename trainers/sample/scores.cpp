#include "trainers/sample/scores.h"

#include "framework/metrics/pictures.h"
#include "framework/metrics/scene_score.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>

namespace trireme::sample {

std::map<std::string, double> scene_scores(const std::vector<std::string>& prompts, const std::string& folder) {
  std::vector<Scene> scenes;
  SceneRange range;  // of possible answers: what is trained by default, and what the prompts say
  const auto add = [](std::vector<int>& all, int word) {
    if (std::find(all.begin(), all.end(), word) == all.end()) all.push_back(word);
  };
  for (const auto& prompt : prompts) {
    const auto scene = parse_scene(prompt);
    if (!scene) return {};
    scenes.push_back(*scene);
    add(range.colors, scene->ground);
    for (const auto& o : scene->objects) {
      add(range.colors, o.color), add(range.shapes, o.shape), add(range.sizes, o.size);
      add(range.textures, o.texture);
    }
  }
  std::vector<SceneScore> scores;
  std::optional<SceneReader> reader;
  for (std::size_t i = 0; i < scenes.size(); ++i) {
    char name[32];
    std::snprintf(name, sizeof name, "/%05zu.png", i);
    const Image picture = load_image(folder + name);
    if (std::min(picture.width, picture.height) < 48) return {};
    if (!reader) reader.emplace(range, picture.width, picture.height);
    scores.push_back(reader->score(picture, scenes[i]));
  }
  return scores.empty() ? std::map<std::string, double>() : mean_scores(scores);
}

std::map<std::string, double> fidelity(std::int64_t count, const std::string& folder, const std::string& reference) {
  double psnrs = 0, ssims = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    char name[32];
    std::snprintf(name, sizeof name, "/%05lld.png", static_cast<long long>(i));
    if (!std::filesystem::exists(folder + name) || !std::filesystem::exists(reference + name)) return {};
    const Image a = load_image(folder + name), b = load_image(reference + name);
    if (a.width != b.width || a.height != b.height || std::min(a.width, a.height) < 11) return {};
    const auto x = planes_of(a), y = planes_of(b);
    const PicturePlanes p{x.data(), 3, a.height, a.width}, q{y.data(), 3, a.height, a.width};
    psnrs += std::min(60.0, psnr(p, q));
    ssims += ssim(p, q);
  }
  if (count == 0) return {};
  return {{"psnr", psnrs / double(count)}, {"ssim", ssims / double(count)}};
}

}  // namespace trireme::sample

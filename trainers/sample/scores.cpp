#include "trainers/sample/scores.h"

#include "framework/metrics/scene_score.h"

#include <algorithm>
#include <cstdio>
#include <optional>

namespace trireme::sample {

std::map<std::string, double> scene_scores(const std::vector<std::string>& prompts, const std::string& folder) {
  std::vector<Scene> scenes;
  for (const auto& prompt : prompts) {
    const auto scene = parse_scene(prompt);
    if (!scene) return {};
    scenes.push_back(*scene);
  }
  std::vector<SceneScore> scores;
  std::optional<SceneReader> reader;
  for (std::size_t i = 0; i < scenes.size(); ++i) {
    char name[32];
    std::snprintf(name, sizeof name, "/%05zu.png", i);
    const Image picture = load_image(folder + name);
    if (std::min(picture.width, picture.height) < 48) return {};
    if (!reader) reader.emplace(SceneRange{}, picture.width, picture.height);
    scores.push_back(reader->score(picture, scenes[i]));
  }
  return scores.empty() ? std::map<std::string, double>() : mean_scores(scores);
}

}  // namespace trireme::sample

// Metrics of pictures: what rules read off renders of known scenes, and figures of pictures against formulas.
#include "data/rng.h"
#include "framework/metrics/scene_score.h"

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

TEST(Pictures, RulesReadWhatWasRendered) {
  const SceneRange range;
  for (const int side : {48, 64, 128, 256}) {
    const SceneReader reader(range, side, side);
    std::vector<SceneScore> scores;
    for (std::uint64_t i = 0; i < (side > 64 ? 60 : 400); ++i) {
      const Scene scene = scene_within(range, 5, i);
      const auto s = reader.score(render(scene, side, side), scene);
      if (!s.all_right) std::cout << side << " " << describe(scene) << " " << s.iou << "\n";
      scores.push_back(s);
    }
    for (const auto& [k, v] : mean_scores(scores)) std::cout << side << " " << k << " " << v << "\n";
  }
}

}  // namespace
}  // namespace trireme::test

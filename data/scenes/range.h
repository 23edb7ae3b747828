// Scenes of a chosen part of the words, in even light and without grain: what small generative models are trained on.
// One object, so that a picture is judged by rule.
#pragma once
#include "data/scenes/scene.h"

#include <cstdint>
#include <vector>

namespace trireme {

// Numbers of SceneWords, each at least once.
struct SceneRange {
  std::vector<int> shapes{0, 1, 2, 3, 6, 7};          // circle, square, triangle, diamond, star, cross
  std::vector<int> colors{0, 2, 3, 4, 5, 6, 10, 11};  // red, yellow, green, cyan, blue, purple, black, white
  std::vector<int> sizes{1, 2};                       // medium, large
  std::vector<int> textures{0, 1};                    // plain, striped
  double jitter = 0.5;                                // of place, turn and phase: share of what `scene_at` allows
};

// Scene i: a function of (seed, i) and the range. Sentences are split by their hash: 1 in 16 is held out. UsageError:
// so few sentences that none is of this part.
Scene scene_within(const SceneRange& range, std::uint64_t seed, std::uint64_t i, ScenePart part = ScenePart::training);
// The first `count` held-out scenes whose sentences differ; fewer, if there are no more.
std::vector<Scene> held_out_within(const SceneRange& range, std::uint64_t seed, std::int64_t count);

}  // namespace trireme

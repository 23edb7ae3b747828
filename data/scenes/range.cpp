#include "data/scenes/range.h"

#include "comm/error.h"
#include "data/image_text/caption_text.h"
#include "data/rng.h"

#include <unordered_set>

namespace trireme {
namespace {

constexpr double held_out_share = 1.0 / 16;  // of some 12,000 sentences: 500 prompts and more

int pick(Rng& rng, const std::vector<int>& of) { return of[std::size_t(rng.below(of.size()))]; }

Scene draw(const SceneRange& range, Rng& rng) {
  const auto off = [&](double most) { return float(range.jitter * most * (2 * rng.uniform() - 1)); };
  Scene scene;
  SceneObject o;
  scene.ground = pick(rng, range.colors);
  do o.color = pick(rng, range.colors);
  while (o.color == scene.ground);
  o.shape = pick(rng, range.shapes), o.size = pick(rng, range.sizes), o.texture = pick(rng, range.textures);
  o.cell = int(rng.below(SceneWords::cells().size()));
  const double room = 0.05 + 0.08 * (2 - o.size);
  o.dx = off(room), o.dy = off(room), o.turn = off(0.17);
  o.phase = float(range.jitter * rng.uniform());
  scene.objects.push_back(o);
  return scene;
}

}  // namespace

Scene scene_within(const SceneRange& range, std::uint64_t seed, std::uint64_t i, ScenePart part) {
  Rng rng(seed, part == ScenePart::training ? "range scene" : "held-out range scene", 0, i);
  for (int tries = 0; tries < 100000; ++tries) {
    Scene scene = draw(range, rng);
    const bool held_out = caption_draw(describe(scene)) < held_out_draw(held_out_share);
    if (held_out == (part == ScenePart::held_out)) return scene;
  }
  throw UsageError(
      "scenes",
      std::string("no sentence of these words is ") + (part == ScenePart::held_out ? "held out" : "trained on"),
      "name more shapes, colors, sizes or textures");
}

std::vector<Scene> held_out_within(const SceneRange& range, std::uint64_t seed, std::int64_t count) {
  std::vector<Scene> scenes;
  std::unordered_set<std::string> known;
  for (std::int64_t j = 0; std::ssize(scenes) < count && j < 50 * count; ++j) {
    Scene scene = scene_within(range, seed, std::uint64_t(j), ScenePart::held_out);
    if (known.insert(describe(scene)).second) scenes.push_back(std::move(scene));
  }
  return scenes;
}

}  // namespace trireme

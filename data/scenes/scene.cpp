#include "data/scenes/scene.h"

#include "data/image_text/caption_text.h"
#include "data/rng.h"

#include <algorithm>
#include <numbers>
#include <unordered_set>

namespace trireme {
namespace {

using Words = std::vector<std::string_view>;
constexpr double held_out_share = 1.0 / 64;

int pick(Rng& rng, const Words& words) { return int(rng.below(words.size())); }
float between(Rng& rng, double low, double high) { return float(low + (high - low) * rng.uniform()); }

Scene draw(Rng& rng) {
  Scene scene;
  scene.ground = pick(rng, SceneWords::colors());
  std::vector<int> cells{0, 1, 2, 3, 4, 5, 6, 7, 8};
  const auto count = 1 + rng.below(4);
  for (std::uint64_t k = 0; k < count; ++k) {
    SceneObject o;
    o.shape = pick(rng, SceneWords::shapes());
    o.color = int((std::uint64_t(scene.ground) + 1 + rng.below(SceneWords::colors().size() - 1)) %
                  SceneWords::colors().size());
    o.size = pick(rng, SceneWords::sizes());
    o.texture = pick(rng, SceneWords::textures());
    const auto place = rng.below(cells.size());
    o.cell = cells[place];
    cells.erase(cells.begin() + std::ptrdiff_t(place));
    const double room = 0.05 + 0.08 * (2 - o.size);  // what its size leaves of its cell
    o.dx = between(rng, -room, room), o.dy = between(rng, -room, room);
    o.turn = between(rng, -0.17, 0.17);
    o.phase = between(rng, 0, 1);
    scene.objects.push_back(o);
  }
  std::sort(scene.objects.begin(), scene.objects.end(), [](const SceneObject& a, const SceneObject& b) {
    return a.size != b.size ? a.size > b.size : a.cell < b.cell;
  });
  scene.light[0] = between(rng, -1, 1), scene.light[1] = between(rng, -1, 1);
  scene.grain = rng.u32() | 1;
  return scene;
}

std::string object_text(const SceneObject& o) {
  std::string text = "a ";
  text += SceneWords::sizes()[std::size_t(o.size)];
  text += " ";
  text += SceneWords::colors()[std::size_t(o.color)];
  if (o.texture != 0) (text += " ") += SceneWords::textures()[std::size_t(o.texture)];
  (text += " ") += SceneWords::shapes()[std::size_t(o.shape)];
  (text += " ") += SceneWords::cells()[std::size_t(o.cell)];
  return text;
}

std::string ground_text(int ground) {
  const std::string color(SceneWords::colors()[std::size_t(ground)]);
  return (color == "orange" ? " on an " : " on a ") + color + " background";
}

// Takes "WORD " off the front of `text`: the number of the longest word that fits; < 0: none, or it is `optional`.
int take(std::string_view& text, const Words& words) {
  int best = -1;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto w = words[i];
    const bool fits = !w.empty() && text.starts_with(w) && (text.size() == w.size() || text[w.size()] == ' ');
    if (fits && (best < 0 || w.size() > words[std::size_t(best)].size())) best = int(i);
  }
  if (best >= 0) text.remove_prefix(std::min(text.size(), words[std::size_t(best)].size() + 1));
  return best;
}

}  // namespace

const Words& SceneWords::shapes() {
  static const Words all{"circle",  "square", "triangle", "diamond", "pentagon",
                         "hexagon", "star",   "cross",    "heart",   "oval"};
  return all;
}
const Words& SceneWords::colors() {
  static const Words all{"red",    "orange", "yellow", "green", "cyan",  "blue",
                         "purple", "pink",   "brown",  "gray",  "black", "white"};
  return all;
}
const Words& SceneWords::sizes() {
  static const Words all{"small", "medium", "large"};
  return all;
}
const Words& SceneWords::textures() {
  static const Words all{"", "striped", "dotted", "checkered", "outlined"};
  return all;
}
const Words& SceneWords::cells() {
  static const Words all{"at the top left",    "at the top",    "at the top right",
                         "at the left",        "in the center", "at the right",
                         "at the bottom left", "at the bottom", "at the bottom right"};
  return all;
}

Rgb scene_color(int color) {
  static constexpr Rgb all[] = {{214, 39, 40},  {255, 137, 20},  {245, 222, 45}, {44, 150, 50},
                                {40, 200, 215}, {35, 75, 205},   {125, 45, 165}, {245, 130, 190},
                                {120, 75, 40},  {135, 135, 135}, {25, 25, 28},   {243, 243, 240}};
  return all[color];
}

Scene scene_at(std::uint64_t seed, std::uint64_t i, ScenePart part) {
  Rng rng(seed, part == ScenePart::training ? "scene" : "held-out scene", 0, i);
  while (true) {
    Scene scene = draw(rng);
    const bool held_out = caption_draw(describe(scene)) < held_out_draw(held_out_share);
    if (held_out == (part == ScenePart::held_out)) return scene;
  }
}

std::vector<Scene> held_out_scenes(std::uint64_t seed, std::int64_t count) {
  std::vector<Scene> scenes;
  std::unordered_set<std::string> known;
  for (std::uint64_t j = 0; std::ssize(scenes) < count; ++j) {
    Scene scene = scene_at(seed, j, ScenePart::held_out);
    if (known.insert(describe(scene)).second) scenes.push_back(std::move(scene));
  }
  return scenes;
}

std::string describe(const Scene& scene) {
  std::string text;
  for (std::size_t k = 0; k < scene.objects.size(); ++k) {
    if (k > 0) text += k + 1 == scene.objects.size() ? " and " : ", ";
    text += object_text(scene.objects[k]);
  }
  return text + ground_text(scene.ground);
}

std::optional<Scene> parse_scene(std::string_view sentence) {
  std::string plain;  // ", a" becomes " and a"
  for (std::size_t i = 0; i < sentence.size(); ++i)
    if (sentence.substr(i, 2) == ", ")
      plain += " and ", ++i;
    else
      plain += sentence[i];
  std::string_view rest = plain;
  Scene scene;
  while (take(rest, {"a"}) == 0) {
    SceneObject o;
    o.size = take(rest, SceneWords::sizes()), o.color = take(rest, SceneWords::colors());
    o.texture = std::max(0, take(rest, SceneWords::textures()));
    o.shape = take(rest, SceneWords::shapes()), o.cell = take(rest, SceneWords::cells());
    if (o.size < 0 || o.color < 0 || o.shape < 0 || o.cell < 0 || scene.objects.size() == 4) return {};
    scene.objects.push_back(o);
    if (take(rest, {"and"}) < 0) break;
  }
  if (take(rest, {"on"}) < 0 || take(rest, {"a", "an"}) < 0) return {};
  scene.ground = take(rest, SceneWords::colors());
  if (scene.ground < 0 || rest != "background" || scene.objects.empty() || describe(scene) != sentence) return {};
  return scene;
}

std::int64_t scene_class_id(const Scene& scene) {
  return scene.objects[0].color * std::ssize(SceneWords::shapes()) + scene.objects[0].shape;
}

std::string scene_class(const Scene& scene) { return scene_classes()[std::size_t(scene_class_id(scene))]; }

std::vector<std::string> scene_classes() {
  std::vector<std::string> all;
  for (const auto color : SceneWords::colors())
    for (const auto shape : SceneWords::shapes()) all.push_back(std::string(color) + " " + std::string(shape));
  return all;
}

std::vector<std::string> scene_templates() {
  std::vector<std::string> all;
  for (int ground = 0; ground < int(SceneWords::colors().size()); ++ground) {
    const auto size = SceneWords::sizes()[2 - std::size_t(ground) % 2],
               cell = SceneWords::cells()[std::size_t(ground) % SceneWords::cells().size()];
    all.push_back("a " + std::string(size) + " {c} " + std::string(cell) + ground_text(ground));
  }
  return all;
}

}  // namespace trireme

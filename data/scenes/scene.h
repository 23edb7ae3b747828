// Procedural pictures with planted truth: one to four objects on a ground, and an English sentence that says all that
// can be told. Pair i is a function of (seed, i) alone.
#pragma once
#include "data/image_text/images.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct SceneObject {
  int shape = 0, color = 0, size = 0, texture = 0, cell = 0;  // numbers of SceneWords; cell: of 3 x 3, row by row
  float dx = 0, dy = 0;  // off the middle of its cell, in cells: what no sentence tells, as the next two
  float turn = 0;        // radians
  float phase = 0;       // of the texture, 0 to 1
};

struct Scene {
  int ground = 0;                    // color
  std::vector<SceneObject> objects;  // the largest first; in different cells, none of the ground's color
  float light[2] = {0, 0};           // slope of the ground's brightness across and down, -1 to 1
  std::uint32_t grain = 1;           // seed of the grain
};

// Names of the numbers above.
struct SceneWords {
  static const std::vector<std::string_view>& shapes();    // circle, square, ...
  static const std::vector<std::string_view>& colors();    // red, ...
  static const std::vector<std::string_view>& sizes();     // small, medium, large
  static const std::vector<std::string_view>& textures();  // "" (plain), striped, dotted, checkered, outlined
  static const std::vector<std::string_view>& cells();     // at the top left, ...
};
struct Rgb {
  std::uint8_t r, g, b;
};
Rgb scene_color(int color);

// Sentences are split by their hash: 1 in 64 is kept for tests, so no training pair of any number has one of theirs.
enum class ScenePart { training, held_out };
Scene scene_at(std::uint64_t seed, std::uint64_t i, ScenePart part = ScenePart::training);
// The first `count` held-out scenes whose sentences differ.
std::vector<Scene> held_out_scenes(std::uint64_t seed, std::int64_t count);

// "a large red striped circle at the top left and a small blue star in the center on a white background": some 10^17
// sentences, at most 50 words.
std::string describe(const Scene& scene);
// What a sentence says (the rest is zero); none for any other text.
std::optional<Scene> parse_scene(std::string_view sentence);
// The largest object as "red circle", and its number among scene_classes().
std::string scene_class(const Scene& scene);
std::int64_t scene_class_id(const Scene& scene);
std::vector<std::string> scene_classes();
// Prompts of a class that read as the sentences do, on every ground, in every place: "a large {c} at the top left on a
// red background", ...
std::vector<std::string> scene_templates();

// Antialiased, at any size and aspect; the scene fills the picture. `grain`: standard deviation of the noise in levels,
// 0: none, for a truth to compare with.
Image render(const Scene& scene, int width, int height, double grain = 0);
// Where an object's middle lies, in pixels; it has the object's color, whatever the texture.
struct ScenePoint {
  double x, y;
};
ScenePoint center_of(const SceneObject& object, int width, int height);

}  // namespace trireme

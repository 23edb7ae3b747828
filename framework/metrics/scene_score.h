// Is what a prompt says to be seen in the picture? By rule, without a network: objects are connected components of what
// is not the ground's color; shape and size are those of the rendered shape that overlaps most at the object's place;
// color and texture those whose rendered mean and spread are nearest. Made for pictures in even light
// (data/scenes/range.h), of 48 pixels a side and more.
#pragma once
#include "data/image_text/images.h"
#include "data/scenes/range.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// Which pixels are 1, row by row.
struct PixelMask {
  int width = 0, height = 0;
  std::vector<std::uint8_t> on;
  std::int64_t area() const;
};
// Intersection over union of two masks of one size; 1 where both are empty.
double mask_iou(const PixelMask& a, const PixelMask& b);

struct Component {
  std::int64_t area = 0;
  double x = 0, y = 0;  // centroid in pixels, a pixel's middle at + 0.5
  PixelMask mask;       // of the picture's size
};
// Sets of pixels that touch by an edge, of at least `least` pixels, the largest first.
std::vector<Component> components(const PixelMask& mask, std::int64_t least);

struct SceneScore {
  static constexpr std::array<std::string_view, 6> attributes{"ground", "color", "shape", "size", "texture", "cell"};
  std::array<double, 6> right{};  // share of the scene's objects for which it is
  double accuracy = 0;            // mean of these
  bool all_right = false;
  std::int64_t duplicates = 0;  // components beyond the objects of the scene
  std::int64_t missing = 0;     // objects beyond the components
  double iou = 0;               // of the first object's mask to the one the prompt asks for, drawn where it is seen
};

// Reads pictures of one size. Thread safe once it is made.
class SceneReader {
 public:
  SceneReader(SceneRange range, int width, int height);
  SceneScore score(const Image& picture, const Scene& expected) const;
  // What differs from the ground by more than a quarter of the way between the two nearest colors.
  PixelMask foreground(const Image& picture, int& ground) const;

 private:
  struct Look {  // of an object's pixels
    std::array<double, 6> moments{};
    int color = 0, texture = 0;
  };
  struct Seen {
    SceneObject object;
    double iou = 0;
  };
  Seen read(const Image& picture, const Component& component, int ground, const SceneObject& expected) const;
  PixelMask drawn(const SceneObject& object) const;
  PixelMask drawn_at(int shape, int size, int turn, const Component& where) const;

  SceneRange range_;
  int width_, height_;
  std::map<int, std::vector<Look>> looks_;  // by size
  // Centroid of a shape drawn in the middle cell, by shape, size and number of its turn.
  std::map<std::array<int, 3>, ScenePoint> middles_;
};

// Means over pictures, under the names attribute_accuracy, all_right, duplicates, missing, mask_iou and
// accuracy_<attribute>.
std::map<std::string, double> mean_scores(const std::vector<SceneScore>& scores);

}  // namespace trireme

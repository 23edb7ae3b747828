#include "framework/metrics/scene_score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace trireme {
namespace {

constexpr double differs = 38;  // levels from the ground, as a distance of colors

double distance(const std::uint8_t* p, Rgb c) {
  return std::hypot(double(p[0]) - c.r, double(p[1]) - c.g, double(p[2]) - c.b);
}

int nearest(Rgb seen, const std::vector<int>& colors) {
  const std::uint8_t p[3] = {seen.r, seen.g, seen.b};
  return *std::min_element(colors.begin(), colors.end(),
                           [&](int a, int b) { return distance(p, scene_color(a)) < distance(p, scene_color(b)); });
}

// The median of each channel along the picture's edge.
Rgb edge_color(const Image& picture) {
  std::array<std::vector<std::uint8_t>, 3> values;
  const auto take = [&](int x, int y) {
    const auto* p = picture.rgb.data() + 3 * (std::size_t(y) * std::size_t(picture.width) + std::size_t(x));
    for (std::size_t c = 0; c < 3; ++c) values[c].push_back(p[c]);
  };
  for (int x = 0; x < picture.width; ++x) take(x, 0), take(x, picture.height - 1);
  for (int y = 0; y < picture.height; ++y) take(0, y), take(picture.width - 1, y);
  const auto median = [](std::vector<std::uint8_t>& v) {
    std::nth_element(v.begin(), v.begin() + std::ssize(v) / 2, v.end());
    return v[v.size() / 2];
  };
  return {median(values[0]), median(values[1]), median(values[2])};
}

// Mean and spread of each channel where the mask is on and so are its four neighbours: edges are mixed colors.
std::array<double, 6> moments_of(const Image& picture, const PixelMask& mask) {
  std::array<double, 3> sum{}, squares{};
  double n = 0;
  const int w = mask.width, h = mask.height;
  const auto on = [&](int x, int y) { return x >= 0 && y >= 0 && x < w && y < h && mask.on[std::size_t(y * w + x)]; };
  for (const bool inner : {true, false}) {
    for (int y = 0; y < h; ++y)
      for (int x = 0; x < w; ++x) {
        if (!on(x, y) || (inner && !(on(x - 1, y) && on(x + 1, y) && on(x, y - 1) && on(x, y + 1)))) continue;
        const auto* p = picture.rgb.data() + 3 * std::size_t(y * w + x);
        for (std::size_t c = 0; c < 3; ++c) sum[c] += p[c], squares[c] += double(p[c]) * p[c];
        ++n;
      }
    if (n > 0) break;
  }
  std::array<double, 6> m{};
  for (std::size_t c = 0; c < 3 && n > 0; ++c) {
    m[c] = sum[c] / n;
    m[3 + c] = std::sqrt(std::max(0.0, squares[c] / n - m[c] * m[c]));
  }
  return m;
}

PixelMask bright(const Image& picture) {
  PixelMask mask{picture.width, picture.height, std::vector<std::uint8_t>(picture.rgb.size() / 3)};
  for (std::size_t i = 0; i < mask.on.size(); ++i) mask.on[i] = picture.rgb[3 * i] >= 128;
  return mask;
}

constexpr int black = 10, white = 11;

constexpr float turns[] = {-0.08f, 0.f, 0.08f};

SceneObject in_the_middle(int shape, int size, int turn) {
  SceneObject o;
  o.shape = shape, o.size = size, o.turn = turns[turn], o.cell = 4;
  return o;
}

}  // namespace

std::int64_t PixelMask::area() const { return std::accumulate(on.begin(), on.end(), std::int64_t(0)); }

double mask_iou(const PixelMask& a, const PixelMask& b) {
  std::int64_t both = 0, any = 0;
  for (std::size_t i = 0; i < a.on.size(); ++i) both += a.on[i] & b.on[i], any += a.on[i] | b.on[i];
  return any == 0 ? 1 : double(both) / double(any);
}

std::vector<Component> components(const PixelMask& mask, std::int64_t least) {
  const int w = mask.width, h = mask.height;
  std::vector<std::uint8_t> left = mask.on;
  std::vector<Component> found;
  std::vector<int> stack;
  for (int start = 0; start < w * h; ++start) {
    if (!left[std::size_t(start)]) continue;
    Component c;
    c.mask = {w, h, std::vector<std::uint8_t>(left.size())};
    stack.assign(1, start), left[std::size_t(start)] = 0;
    while (!stack.empty()) {
      const int i = stack.back(), x = i % w, y = i / w;
      stack.pop_back();
      c.mask.on[std::size_t(i)] = 1;
      ++c.area, c.x += x + 0.5, c.y += y + 0.5;
      const auto visit = [&](bool inside, int j) {
        if (inside && left[std::size_t(j)]) left[std::size_t(j)] = 0, stack.push_back(j);
      };
      visit(x > 0, i - 1), visit(x + 1 < w, i + 1), visit(y > 0, i - w), visit(y + 1 < h, i + w);
    }
    c.x /= double(c.area), c.y /= double(c.area);
    if (c.area >= least) found.push_back(std::move(c));
  }
  std::stable_sort(found.begin(), found.end(), [](const Component& a, const Component& b) { return a.area > b.area; });
  return found;
}

SceneReader::SceneReader(SceneRange range, int width, int height)
    : range_(std::move(range)), width_(width), height_(height) {
  for (const int size : range_.sizes)
    for (const int color : range_.colors)
      for (const int texture : range_.textures) {
        SceneObject o;
        o.shape = range_.shapes[0], o.size = size, o.color = color, o.texture = texture, o.cell = 4;
        Scene scene;
        scene.ground = color, scene.objects = {o};
        looks_[size].push_back({moments_of(render(scene, width, height), drawn(o)), color, texture});
      }
  for (const int size : range_.sizes)
    for (const int shape : range_.shapes)
      for (int turn = 0; turn < int(std::size(turns)); ++turn) {
        const auto found = components(drawn(in_the_middle(shape, size, turn)), 1);
        if (!found.empty()) middles_[{shape, size, turn}] = {found[0].x, found[0].y};
      }
}

PixelMask SceneReader::drawn(const SceneObject& object) const {
  Scene scene;
  scene.ground = black;
  scene.objects = {object};
  scene.objects[0].color = white, scene.objects[0].texture = 0;
  return bright(render(scene, width_, height_));
}

// With its centroid where the component's is.
PixelMask SceneReader::drawn_at(int shape, int size, int turn, const Component& where) const {
  const auto middle = middles_.find({shape, size, turn});
  if (middle == middles_.end())
    return {width_, height_, std::vector<std::uint8_t>(std::size_t(width_) * std::size_t(height_))};
  SceneObject object = in_the_middle(shape, size, turn);
  object.dx = float((where.x - middle->second.x) / (width_ / 3.0)),
  object.dy = float((where.y - middle->second.y) / (height_ / 3.0));
  return drawn(object);
}

PixelMask SceneReader::foreground(const Image& picture, int& ground) const {
  const Rgb edge = edge_color(picture);
  ground = nearest(edge, range_.colors);
  PixelMask mask{picture.width, picture.height, std::vector<std::uint8_t>(picture.rgb.size() / 3)};
  for (std::size_t i = 0; i < mask.on.size(); ++i) mask.on[i] = distance(picture.rgb.data() + 3 * i, edge) > differs;
  return mask;
}

SceneReader::Seen SceneReader::read(const Image& picture, const Component& component, int ground,
                                    const SceneObject& expected) const {
  Seen seen;
  double best = -1;
  for (const int shape : range_.shapes)
    for (const int size : range_.sizes)
      for (int turn = 0; turn < int(std::size(turns)); ++turn) {
        const double iou = mask_iou(drawn_at(shape, size, turn, component), component.mask);
        if (shape == expected.shape && size == expected.size) seen.iou = std::max(seen.iou, iou);
        if (iou > best) best = iou, seen.object.shape = shape, seen.object.size = size;
      }
  const auto moments = moments_of(picture, component.mask);
  double least = std::numeric_limits<double>::max();
  for (const Look& look : looks_.at(seen.object.size)) {
    if (look.color == ground) continue;
    double d = 0;
    for (std::size_t i = 0; i < moments.size(); ++i)
      d += (moments[i] - look.moments[i]) * (moments[i] - look.moments[i]);
    if (d < least) least = d, seen.object.color = look.color, seen.object.texture = look.texture;
  }
  const auto third = [](double at, int side) { return std::clamp(int(3 * at / side), 0, 2); };
  seen.object.cell = 3 * third(component.y, height_) + third(component.x, width_);
  return seen;
}

SceneScore SceneReader::score(const Image& picture, const Scene& expected) const {
  SceneScore s;
  int ground = 0;
  // The smallest shape covers more than a hundredth of the picture.
  auto found = components(foreground(picture, ground), std::max(1, width_ * height_ / 300));
  const auto wanted = std::ssize(expected.objects), there = std::ssize(found);
  s.duplicates = std::max<std::int64_t>(0, there - wanted), s.missing = std::max<std::int64_t>(0, wanted - there);
  s.right[0] = ground == expected.ground;
  for (const auto& object : expected.objects) {
    if (found.empty()) break;
    const ScenePoint place = center_of(object, width_, height_);
    // One object is the largest component, wherever it is; of several each is the nearest.
    const auto chosen =
        wanted == 1 ? found.begin() : std::min_element(found.begin(), found.end(), [&](const auto& a, const auto& b) {
          return std::hypot(a.x - place.x, a.y - place.y) < std::hypot(b.x - place.x, b.y - place.y);
        });
    const Seen seen = read(picture, *chosen, ground, object);
    if (&object == expected.objects.data()) s.iou = seen.iou;
    const SceneObject& o = seen.object;
    const bool right[] = {o.color == object.color, o.shape == object.shape, o.size == object.size,
                          o.texture == object.texture, o.cell == object.cell};
    for (std::size_t k = 0; k < 5; ++k) s.right[k + 1] += double(right[k]) / double(wanted);
    found.erase(chosen);
  }
  s.accuracy = std::accumulate(s.right.begin(), s.right.end(), 0.0) / double(s.right.size());
  s.all_right = std::all_of(s.right.begin(), s.right.end(), [](double r) { return r == 1; });
  return s;
}

std::map<std::string, double> mean_scores(const std::vector<SceneScore>& scores) {
  std::map<std::string, double> mean;
  for (const auto& s : scores) {
    const double share = 1 / double(scores.size());
    mean["attribute_accuracy"] += s.accuracy * share, mean["all_right"] += s.all_right * share;
    mean["duplicates"] += double(s.duplicates) * share, mean["missing"] += double(s.missing) * share;
    mean["mask_iou"] += s.iou * share;
    for (std::size_t k = 0; k < s.right.size(); ++k)
      mean["accuracy_" + std::string(SceneScore::attributes[k])] += s.right[k] * share;
  }
  return mean;
}

}  // namespace trireme

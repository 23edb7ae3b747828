#include "data/image_text/view.h"

#include "data/image_text/crop_taps.h"

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

constexpr double least_ratio = 3.0 / 4, most_ratio = 4.0 / 3;

// Halves go to the even number, as in Python.
int round_half_even(double v) { return int(std::nearbyint(v)); }

View centred(int width, int height, int w, int h) {
  return {double((width - w) / 2), double((height - h) / 2), double(w), double(h), false, true};
}

// How much smaller the decoded pixels are than the size on record. The fraction is exact: the last pixel of a scaled
// JPEG may be a part of one.
double factor(int recorded, int decoded) {
  for (const int d : {1, 2, 4, 8})
    if ((recorded + d - 1) / d == decoded) return 1.0 / d;
  return double(decoded) / recorded;
}

}  // namespace

View middle_view(int width, int height, int size) {
  const auto longer = [&](int longer_side, int shorter_side) { return int(double(size) * longer_side / shorter_side); };
  const int w = width <= height ? size : longer(width, height), h = width <= height ? longer(height, width) : size;
  const double across = double(width) / w, down = double(height) / h;
  return {round_half_even((w - size) / 2.0) * across,
          round_half_even((h - size) / 2.0) * down,
          size * across,
          size * down,
          false,
          false,
          down_first(width, height, w, h)};
}

View random_view(Rng rng, int width, int height, int size, double scale, double flip) {
  const bool mirror = rng.uniform() < flip;
  View view = middle_view(width, height, size);
  if (scale < 1) {
    const double limit = std::log(most_ratio), area = double(width) * height, whole = double(width) / height;
    view = whole < least_ratio  ? centred(width, height, width, round_half_even(width / least_ratio))
           : whole > most_ratio ? centred(width, height, round_half_even(height * most_ratio), height)
                                : centred(width, height, width, height);
    for (int attempt = 0; attempt < 10; ++attempt) {
      const double part = area * (scale + (1 - scale) * rng.uniform());
      const double ratio = std::exp((2 * rng.uniform() - 1) * limit);
      const int w = round_half_even(std::sqrt(part * ratio)), h = round_half_even(std::sqrt(part / ratio));
      if (w <= 0 || h <= 0 || w > width || h > height) continue;
      const auto x = rng.below(std::uint64_t(width - w) + 1), y = rng.below(std::uint64_t(height - h) + 1);
      view = {double(x), double(y), double(w), double(h), false, true};
      break;
    }
  }
  if (view.cut) view.down_first = down_first(int(view.width), int(view.height), size, size);
  view.mirror = mirror;
  return view;
}

double least_factor(const View& view, int size) { return std::max(size / view.width, size / view.height); }

Cut cut(const View& view, const Picture& picture, int size) {
  const Image& in = picture.pixels;
  struct Side {
    int first, count;
    double begin, length;
  };
  const auto side = [&](double begin, double length, int recorded, int decoded) {
    const double f = factor(recorded, decoded);
    begin *= f, length *= f;
    const double beyond = view.cut ? 0 : 2 * std::max(1.0, length / size) + 1;
    const int first = std::clamp(int(std::floor(begin - beyond)), 0, decoded - 1);
    const int last = std::clamp(int(std::ceil(begin + length + beyond)), first + 1, decoded);
    return Side{first, last - first, begin - first, length};
  };
  const Side x = side(view.left, view.width, picture.width, in.width);
  const Side y = side(view.top, view.height, picture.height, in.height);
  return {{x.count, y.count, view.mirror ? 1 : 0, in.width * 3, x.begin, y.begin, x.length, y.length,
           view.down_first ? 1 : 0},
          x.first,
          y.first};
}

}  // namespace trireme

#include "framework/models/preprocess.h"

#include "data/image_text/resize.h"

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

// Python's round: halves to even.
int rounded(double x) { return int(std::nearbyint(x)); }

struct Fit {
  int width, height;  // after the resize
};

Fit fit(const Image& in, const Preprocess& p) {
  const int size = int(p.size), w = in.width, h = in.height;
  if (p.resize_mode == "squash") return {size, size};
  if (p.resize_mode == "longest") {
    const double ratio = std::max(double(h) / size, double(w) / size);
    return {std::max(1, rounded(w / ratio)), std::max(1, rounded(h / ratio))};
  }
  const auto longer = [&](int a, int b) { return int(double(std::int64_t(size) * a) / b); };
  return w <= h ? Fit{size, longer(h, w)} : Fit{longer(w, h), size};
}

}  // namespace

Image Preprocess::square(const Image& picture) const {
  const Fit f = fit(picture, *this);
  const Image small =
      resize(picture, f.width, f.height, interpolation == "bilinear" ? Filter::bilinear : Filter::bicubic);
  // Where the picture's corner lies: inside it (crop) or before it (pad).
  const auto offset = [&](int side) {
    return side < size ? -((int(size) - side) / 2) : rounded(double(side - size) / 2.0);
  };
  const int left = offset(f.width), top = offset(f.height), s = int(size);
  Image out{s, s, std::vector<std::uint8_t>(std::size_t(3) * s * s, std::uint8_t(fill))};
  for (int y = std::max(0, -top); y < s && top + y < small.height; ++y)
    for (int x = std::max(0, -left); x < s && left + x < small.width; ++x)
      std::copy_n(&small.rgb[3 * (std::size_t(top + y) * small.width + left + x)], 3,
                  &out.rgb[3 * (std::size_t(y) * s + x)]);
  return out;
}

at::Tensor Preprocess::operator()(const Image& picture) const {
  const Image levels = square(picture);
  at::Tensor out = at::empty({3, size, size}, at::kFloat);
  float* to = out.mutable_data_ptr<float>();
  for (std::size_t c = 0; c < 3; ++c)
    for (std::size_t i = c; i < levels.rgb.size(); i += 3)
      *to++ = (float(levels.rgb[i]) / 255.0F - float(mean[c])) / float(std[c]);
  return out;
}

}  // namespace trireme

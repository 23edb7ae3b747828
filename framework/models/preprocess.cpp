#include "framework/models/preprocess.h"

#include <cmath>

namespace trireme {
namespace {

constexpr int bits = 22;  // of the weights' fractions, as in Pillow

double bicubic(double x) {  // a = -0.5
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}
double triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

struct Taps {
  int first = 0;
  std::vector<int> weights;
};

std::vector<Taps> taps(int from, int to, bool cubic) {
  const double scale = double(from) / to, stretch = std::max(scale, 1.0), support = (cubic ? 2 : 1) * stretch;
  std::vector<Taps> all(to);
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    const int lo = std::max(0, int(centre - support + 0.5)), hi = std::min(from, int(centre + support + 0.5));
    std::vector<double> w;
    double sum = 0;
    for (int j = lo; j < hi; ++j) {
      const double x = (j - centre + 0.5) * (1 / stretch);
      w.push_back(cubic ? bicubic(x) : triangle(x));
      sum += w.back();
    }
    all[i].first = lo;
    for (const double v : w) {
      const double fixed = (sum == 0 ? v : v / sum) * (1 << bits);
      all[i].weights.push_back(int(fixed + (fixed < 0 ? -0.5 : 0.5)));
    }
  }
  return all;
}

std::uint8_t clip8(int sum) { return std::uint8_t(std::clamp(sum >> bits, 0, 255)); }

// `stride` bytes from one value of a line to the next, for the three channels of one place.
void sum_up(const std::uint8_t* in, std::size_t stride, const Taps& t, std::uint8_t* out) {
  for (int c = 0; c < 3; ++c) {
    int sum = 1 << (bits - 1);
    const std::uint8_t* p = in + std::size_t(t.first) * stride + c;
    for (const int w : t.weights) sum += w * *p, p += stride;
    out[c] = clip8(sum);
  }
}

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

Image pillow_resize(const Image& in, int width, int height, bool cubic) {
  if (in.width == width && in.height == height) return in;
  Image half = in;
  if (in.width != width) {
    half = {width, in.height, std::vector<std::uint8_t>(std::size_t(3) * width * in.height)};
    const auto across = taps(in.width, width, cubic);
    for (int y = 0; y < in.height; ++y)
      for (int x = 0; x < width; ++x)
        sum_up(&in.rgb[std::size_t(3) * y * in.width], 3, across[x], &half.rgb[3 * (std::size_t(y) * width + x)]);
  }
  if (in.height == height) return half;
  Image out{width, height, std::vector<std::uint8_t>(std::size_t(3) * width * height)};
  const auto down = taps(in.height, height, cubic);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      sum_up(&half.rgb[std::size_t(3) * x], std::size_t(3) * width, down[y],
             &out.rgb[3 * (std::size_t(y) * width + x)]);
  return out;
}

at::Tensor Preprocess::operator()(const Image& picture) const {
  const Fit f = fit(picture, *this);
  const Image small = pillow_resize(picture, f.width, f.height, interpolation != "bilinear");
  // Where the picture's corner lies: inside it (crop) or before it (pad).
  const auto offset = [&](int side) {
    return side < size ? -((int(size) - side) / 2) : rounded(double(side - size) / 2.0);
  };
  const int left = offset(f.width), top = offset(f.height), s = int(size);
  at::Tensor out = at::empty({3, size, size}, at::kFloat);
  float* to = out.mutable_data_ptr<float>();
  for (int c = 0; c < 3; ++c)
    for (int y = top; y < top + s; ++y)
      for (int x = left; x < left + s; ++x) {
        const bool inside = x >= 0 && y >= 0 && x < small.width && y < small.height;
        const auto v = inside ? small.rgb[3 * (std::size_t(y) * small.width + x) + c] : std::uint8_t(fill);
        *to++ = (float(v) / 255.0F - float(mean[c])) / float(std[c]);
      }
  return out;
}

}  // namespace trireme

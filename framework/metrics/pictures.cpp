#include "framework/metrics/pictures.h"

#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <limits>
#include <string>

namespace trireme {
namespace {

constexpr int window = 11;
constexpr double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;

struct Plane {
  std::int64_t height = 0, width = 0;
  std::vector<double> v;
};

Plane plane_of(const PicturePlanes& p, std::int64_t c) {
  return {p.height, p.width, std::vector<double>(p.plane(c), p.plane(c) + p.height * p.width)};
}

Plane product(const Plane& a, const Plane& b) {
  Plane out = a;
  for (std::size_t i = 0; i < out.v.size(); ++i) out.v[i] *= b.v[i];
  return out;
}

// Where the window fits.
Plane blurred(const Plane& in) {
  std::array<double, window> weight{};
  double sum = 0;
  for (int i = 0; i < window; ++i) sum += weight[std::size_t(i)] = std::exp(-(i - 5) * (i - 5) / (2 * 1.5 * 1.5));
  for (auto& w : weight) w /= sum;
  Plane rows{in.height, in.width - window + 1, {}}, out{in.height - window + 1, in.width - window + 1, {}};
  rows.v.resize(std::size_t(rows.height * rows.width)), out.v.resize(std::size_t(out.height * out.width));
  for (std::int64_t y = 0; y < rows.height; ++y)
    for (std::int64_t x = 0; x < rows.width; ++x)
      for (int i = 0; i < window; ++i)
        rows.v[std::size_t(y * rows.width + x)] += weight[std::size_t(i)] * in.v[std::size_t(y * in.width + x + i)];
  for (std::int64_t y = 0; y < out.height; ++y)
    for (std::int64_t x = 0; x < out.width; ++x)
      for (int i = 0; i < window; ++i)
        out.v[std::size_t(y * out.width + x)] += weight[std::size_t(i)] * rows.v[std::size_t((y + i) * out.width + x)];
  return out;
}

struct Similarity {
  double whole = 0, structure = 0;  // with and without the term of brightness
};

Similarity similarity(const Plane& a, const Plane& b) {
  const Plane ma = blurred(a), mb = blurred(b), aa = blurred(product(a, a)), bb = blurred(product(b, b)),
              ab = blurred(product(a, b));
  Similarity s;
  for (std::size_t i = 0; i < ma.v.size(); ++i) {
    const double x = ma.v[i], y = mb.v[i];
    const double structure = (2 * (ab.v[i] - x * y) + c2) / (aa.v[i] - x * x + bb.v[i] - y * y + c2);
    s.structure += structure, s.whole += structure * (2 * x * y + c1) / (x * x + y * y + c1);
  }
  s.whole /= double(ma.v.size()), s.structure /= double(ma.v.size());
  return s;
}

Plane halved(const Plane& in) {
  Plane out{in.height / 2, in.width / 2, {}};
  for (std::int64_t y = 0; y < out.height; ++y)
    for (std::int64_t x = 0; x < out.width; ++x) {
      const auto at = [&](std::int64_t dy, std::int64_t dx) {
        return in.v[std::size_t((2 * y + dy) * in.width + 2 * x + dx)];
      };
      out.v.push_back((at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4);
    }
  return out;
}

void check(const PicturePlanes& a, const PicturePlanes& b) {
  if (a.channels != b.channels || a.height != b.height || a.width != b.width)
    throw UsageError("pictures", "of two sizes cannot be compared", "resize one");
}

using Complex = std::complex<double>;

// Frequencies [0, n) of n values, `stride` apart; roots of unity, those of n `step` apart. Evens and odds apart, as
// long as there are as many.
void transform(const Complex* v, std::int64_t n, std::int64_t stride, const Complex* roots, std::int64_t step,
               Complex* out) {
  const std::int64_t half = n / 2;
  if (n % 2 == 0) {
    transform(v, half, 2 * stride, roots, 2 * step, out);
    transform(v + stride, half, 2 * stride, roots, 2 * step, out + half);
    for (std::int64_t k = 0; k < half; ++k) {
      const Complex even = out[k], odd = out[k + half] * roots[k * step];
      out[k] = even + odd, out[k + half] = even - odd;
    }
    return;
  }
  for (std::int64_t k = 0; k < n; ++k) {
    out[k] = 0;
    for (std::int64_t i = 0; i < n; ++i) out[k] += v[i * stride] * roots[k * i % n * step];
  }
}

}  // namespace

std::vector<float> planes_of(const Image& image) {
  const std::size_t n = image.rgb.size() / 3;
  std::vector<float> planes(3 * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t c = 0; c < 3; ++c) planes[c * n + i] = float(image.rgb[3 * i + c]) / 255;
  return planes;
}

double psnr(const PicturePlanes& a, const PicturePlanes& b) {
  check(a, b);
  const std::int64_t n = a.channels * a.height * a.width;
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += (double(a.values[i]) - b.values[i]) * (double(a.values[i]) - b.values[i]);
  return sum == 0 ? std::numeric_limits<double>::infinity() : -10 * std::log10(sum / double(n));
}

double ssim(const PicturePlanes& a, const PicturePlanes& b) {
  check(a, b);
  if (std::min(a.height, a.width) < window)
    throw UsageError("ssim", "needs pictures of 11 pixels a side", "these have less");
  double sum = 0;
  for (std::int64_t c = 0; c < a.channels; ++c) sum += similarity(plane_of(a, c), plane_of(b, c)).whole;
  return sum / double(a.channels);
}

double ms_ssim(const PicturePlanes& a, const PicturePlanes& b) {
  check(a, b);
  static constexpr std::array<double, 5> weights{0.0448, 0.2856, 0.3001, 0.2363, 0.1333};
  std::size_t scales = 0;
  double all = 0;
  for (std::int64_t side = std::min(a.height, a.width); scales < weights.size() && side >= window; side /= 2)
    all += weights[scales++];
  if (scales == 0) throw UsageError("ms_ssim", "needs pictures of 11 pixels a side", "these have less");
  double sum = 0;
  for (std::int64_t c = 0; c < a.channels; ++c) {
    Plane x = plane_of(a, c), y = plane_of(b, c);
    double result = 1;
    for (std::size_t s = 0; s < scales; ++s) {
      const Similarity here = similarity(x, y);
      result *= std::pow(std::max(0.0, s + 1 == scales ? here.whole : here.structure), weights[s] / all);
      if (s + 1 < scales) x = halved(x), y = halved(y);
    }
    sum += result;
  }
  return sum / double(a.channels);
}

std::vector<double> radial_spectrum(const PicturePlanes& p) {
  const std::int64_t n = std::min(p.height, p.width), top = (p.height - n) / 2, left = (p.width - n) / 2;
  std::vector<Complex> v(std::size_t(n * n)), roots(static_cast<std::size_t>(n));
  for (std::int64_t k = 0; k < n; ++k)
    roots[std::size_t(k)] = std::polar(1.0, -2 * std::acos(-1.0) * double(k) / double(n));
  for (std::int64_t y = 0; y < n; ++y)
    for (std::int64_t x = 0; x < n; ++x)
      for (std::int64_t c = 0; c < p.channels; ++c)
        v[std::size_t(y * n + x)] += double(p.plane(c)[(top + y) * p.width + left + x]) / double(p.channels);
  std::vector<Complex> across(v.size()), line(roots.size());
  for (std::int64_t y = 0; y < n; ++y) transform(v.data() + y * n, n, 1, roots.data(), 1, across.data() + y * n);
  for (std::int64_t x = 0; x < n; ++x) {
    transform(across.data() + x, n, n, roots.data(), 1, line.data());
    for (std::int64_t y = 0; y < n; ++y) v[std::size_t(y * n + x)] = line[std::size_t(y)];
  }
  std::vector<double> power(std::size_t(std::max<std::int64_t>(0, n / 2 - 1))), count(power.size());
  for (std::int64_t y = 0; y < n; ++y)
    for (std::int64_t x = 0; x < n; ++x) {
      const double r = std::hypot(double(std::min(y, n - y)), double(std::min(x, n - x)));
      const auto at = std::int64_t(std::lround(r)) - 1;
      if (at < 0 || at >= std::ssize(power)) continue;
      power[std::size_t(at)] += std::norm(v[std::size_t(y * n + x)]) / double(n * n), ++count[std::size_t(at)];
    }
  for (std::size_t i = 0; i < power.size(); ++i) power[i] = std::log10(power[i] / count[i] + 1e-12);
  return power;
}

double spectrum_distance(const std::vector<double>& a, const std::vector<double>& b) {
  const std::size_t n = std::min(a.size(), b.size());
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return n == 0 ? 0 : std::sqrt(sum / double(n));
}

double seam_ratio(const PicturePlanes& p, std::int64_t tile_rows, std::int64_t tile_columns, std::int64_t patch) {
  std::array<double, 2> sum{}, count{};
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const float* v = p.plane(c);
    for (std::int64_t y = patch; y < p.height; y += patch)
      for (std::int64_t x = 0; x < p.width; ++x) {
        const std::size_t seam = y % tile_rows == 0;
        sum[seam] += std::abs(double(v[y * p.width + x]) - v[(y - 1) * p.width + x]), ++count[seam];
      }
    for (std::int64_t y = 0; y < p.height; ++y)
      for (std::int64_t x = patch; x < p.width; x += patch) {
        const std::size_t seam = x % tile_columns == 0;
        sum[seam] += std::abs(double(v[y * p.width + x]) - v[y * p.width + x - 1]), ++count[seam];
      }
  }
  if (count[0] == 0 || count[1] == 0 || sum[0] == 0) return 0;
  return (sum[1] / count[1]) / (sum[0] / count[0]);
}

void ColorFlicker::add(const PicturePlanes& frame) {
  std::vector<double> mean;
  for (std::int64_t c = 0; c < frame.channels; ++c) {
    double sum = 0;
    for (std::int64_t i = 0; i < frame.height * frame.width; ++i) sum += frame.plane(c)[i];
    mean.push_back(sum / double(frame.height * frame.width));
  }
  if (frames_++ > 0)
    for (std::size_t c = 0; c < mean.size(); ++c) change_ += std::abs(mean[c] - last_[c]) / double(mean.size());
  last_ = std::move(mean);
}

}  // namespace trireme

#include "data/image_text/image_text.h"

#include "data/rng.h"

#include <array>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme {
namespace {

// OpenAI's CLIP statistics, as every CLIP descendant normalises.
constexpr std::array<double, 3> mean{0.48145466, 0.4578275, 0.40821073}, std_dev{0.26862954, 0.26130258, 0.27577711};

struct Crop {
  double x = 0, y = 0, w, h;
  bool mirror = false;
};

// Area uniform in [scale, 1], aspect ratio log-uniform in [3/4, 4/3], as torchvision's RandomResizedCrop.
Crop random_crop(Rng rng, double size, double scale, double flip) {
  Crop c{0, 0, size, size, rng.uniform() < flip};
  if (scale >= 1) return c;
  const double area = size * size * (scale + (1 - scale) * rng.uniform());
  const double limit = std::log(4.0 / 3), ratio = std::exp((2 * rng.uniform() - 1) * limit);
  c.w = std::min(size, std::sqrt(area * ratio));
  c.h = std::min(size, std::sqrt(area / ratio));
  c.x = (size - c.w) * rng.uniform();
  c.y = (size - c.h) * rng.uniform();
  return c;
}

// Bilinear sample of the crop, normalised, into out [3, s, s].
template <class T>
void sample(const std::uint8_t* in, std::int64_t s, const Crop& crop, T* out) {
  struct Tap {
    std::int64_t a, b;
    float f;
  };
  const auto taps = [s](double first, double length, bool mirror) {
    std::vector<Tap> t(s);
    for (std::int64_t i = 0; i < s; ++i) {
      const double at = first + (double(mirror ? s - 1 - i : i) + 0.5) * length / double(s) - 0.5;
      const double low = std::floor(std::clamp(at, 0.0, double(s - 1)));
      t[i] = {std::int64_t(low), std::min(std::int64_t(low) + 1, s - 1), float(std::clamp(at - low, 0.0, 1.0))};
    }
    return t;
  };
  const auto tx = taps(crop.x, crop.w, crop.mirror), ty = taps(crop.y, crop.h, false);
  for (int c = 0; c < 3; ++c) {
    const float scale = float(1 / (255 * std_dev[c])), shift = float(-mean[c] / std_dev[c]);
    const std::uint8_t* plane = in + c * s * s;
    for (std::int64_t y = 0; y < s; ++y) {
      const std::uint8_t *r0 = plane + ty[y].a * s, *r1 = plane + ty[y].b * s;
      for (std::int64_t x = 0; x < s; ++x) {
        const auto& t = tx[x];
        const float top = r0[t.a] + (float(r0[t.b]) - r0[t.a]) * t.f;
        const float bottom = r1[t.a] + (float(r1[t.b]) - r1[t.a]) * t.f;
        *out++ = T((top + (bottom - top) * ty[y].f) * scale + shift);
      }
    }
  }
}

// Drops comma-separated parts, keeping at least one.
std::string drop_keywords(const std::string& caption, double chance, Rng rng) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= caption.size();) {
    const std::size_t end = std::min(caption.find(", ", begin), caption.size());
    parts.push_back(caption.substr(begin, end - begin));
    begin = end + 2;
  }
  std::string kept;
  for (const auto& p : parts)
    if (rng.uniform() >= chance) kept += (kept.empty() ? "" : ", ") + p;
  return kept.empty() ? parts[rng.below(parts.size())] : kept;
}

}  // namespace

Batch ImageTextDataset::read(std::span<const std::int64_t> ids, std::int64_t epoch) const {
  const std::int64_t b = std::int64_t(ids.size()), s = data_.image_size();
  const at::Tensor raw = data_.images(ids);
  const std::uint8_t* in = raw.const_data_ptr<std::uint8_t>();
  at::Tensor image = at::empty({b, 3, s, s}, options_.type), lengths;
  std::vector<std::string> texts;
  for (std::int64_t i = 0; i < b; ++i) {
    const auto id = std::uint64_t(ids[i]);
    const Crop crop = random_crop(Rng(options_.seed, "augment", std::uint64_t(epoch), id), double(s),
                                  options_.crop_scale, options_.flip);
    const auto write = [&](auto* out) { sample(in + i * 3 * s * s, s, crop, out + i * 3 * s * s); };
    options_.type == at::kDouble ? write(image.data_ptr<double>()) : write(image.data_ptr<float>());
    const std::string caption = data_.caption(ids[i]);
    texts.push_back(
        options_.keyword_dropout > 0
            ? drop_keywords(caption, options_.keyword_dropout, Rng(options_.seed, "keywords", std::uint64_t(epoch), id))
            : caption);
  }
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.epoch = epoch;
  batch.columns["image"] = image;
  batch.columns["ids"] = tokenizer_.encode_batch(texts, options_.context, &lengths);
  batch.columns["end"] = lengths - 1;
  return batch;
}

at::Tensor ImageTextDataset::pixels(std::span<const std::int64_t> ids) const {
  const auto column = [](const std::array<double, 3>& v) {
    return at::tensor(at::ArrayRef<double>(v.data(), 3), at::kDouble).view({1, 3, 1, 1});
  };
  return ((data_.images(ids).to(at::kDouble) / 255 - column(mean)) / column(std_dev)).to(options_.type);
}

}  // namespace trireme

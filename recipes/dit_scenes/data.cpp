#include "recipes/dit_scenes/data.h"

#include "comm/error.h"
#include "data/image_text/open_pairs.h"
#include "data/rng.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme::dit {
namespace {

// Scenes of training come first, those held out after them.
class Scenes final : public Source {
 public:
  Scenes(const DataConfig& data, std::uint64_t seed, std::int64_t side)
      : data_(data),
        range_(data.range()),
        held_out_(held_out_within(range_, seed, most_held_out)),
        seed_(seed),
        side_(side) {}
  std::int64_t size() const override { return data_.samples + std::ssize(held_out_); }
  std::string caption(std::int64_t id) const override { return describe(at(id)); }
  void draw(std::int64_t id, std::span<std::uint8_t> planes) const override {
    const Scene scene = at(id);
    const std::size_t plane = std::size_t(side_ * side_);
    for (std::int64_t f = 0; f < data_.frames; ++f) {
      const Scene now =
          data_.frames > 1 ? moved(scene, seed_, std::uint64_t(id), f, data_.frames, data_.motion) : scene;
      const Image image = render(now, int(side_), int(side_));
      for (std::size_t c = 0; c < 3; ++c) {
        std::uint8_t* to = planes.data() + (c * std::size_t(data_.frames) + std::size_t(f)) * plane;
        for (std::size_t i = 0; i < plane; ++i) to[i] = image.rgb[3 * i + c];
      }
    }
  }
  std::vector<std::int64_t> train_ids() const override { return range(0, data_.samples); }
  std::vector<std::int64_t> held_out_ids() const override { return range(data_.samples, size()); }
  std::string identity() const override { return "scenes"; }

 private:
  static constexpr std::int64_t most_held_out = 1000;
  static std::vector<std::int64_t> range(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids(std::size_t(last - first));
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }
  Scene at(std::int64_t id) const {
    return id < data_.samples ? scene_within(range_, seed_, std::uint64_t(id))
                              : held_out_[std::size_t(id - data_.samples)];
  }
  DataConfig data_;
  SceneRange range_;
  std::vector<Scene> held_out_;
  std::uint64_t seed_;
  std::int64_t side_;
};

// Pictures with captions, fitted into a white square.
class Captioned final : public Source {
 public:
  Captioned(const DataConfig& data, std::int64_t side) : side_(side) {
    spec_.files = {data.source};
    spec_.image_size = int(side);
    pairs_ = open_pairs(spec_);
    for (const int size : pairs_->prepared_sizes())
      if (size > 0 && size < side)
        throw UsageError(
            "sizes",
            std::to_string(side) + " is more than the " + std::to_string(size) + " pixels of " + pairs_->path(),
            "prepare the data at that size");
    if (train_ids().empty()) throw DataError(pairs_->path(), "has no pictures to train on", "bring more");
  }
  std::int64_t size() const override { return pairs_->size(); }
  std::string caption(std::int64_t id) const override { return pairs_->caption(id); }
  void draw(std::int64_t id, std::span<std::uint8_t> planes) const override {
    const auto square = fit_square(pairs_->picture(id).pixels, int(side_));
    std::copy(square.begin(), square.end(), planes.begin());
  }
  std::vector<std::int64_t> train_ids() const override { return train_ids_of(*pairs_, spec_, 0); }
  std::vector<std::int64_t> held_out_ids() const override { return held_out_ids_of(*pairs_, spec_); }
  std::string identity() const override { return pairs_->identity(); }

 private:
  PairsSpec spec_;
  std::unique_ptr<Pairs> pairs_;
  std::int64_t side_;
};

double level(const LevelConfig& levels, Rng& rng) {
  if (levels.kind == "uniform") return rng.uniform();
  return 1 / (1 + std::exp(-(levels.mean + levels.spread * rng.normal())));
}

}  // namespace

Scene moved(Scene scene, std::uint64_t seed, std::uint64_t i, std::int64_t frame, std::int64_t frames, double motion) {
  Rng rng(seed, "scene motion", 0, i);
  const double at = frames > 1 ? double(frame) / double(frames - 1) - 0.5 : 0;
  for (auto& o : scene.objects) {
    const double angle = 2 * std::acos(-1.0) * rng.uniform(), way = motion * at;
    o.dx += float(way * std::cos(angle)), o.dy += float(way * std::sin(angle));
  }
  return scene;
}

std::unique_ptr<Source> open_source(const DataConfig& data, std::uint64_t seed, std::int64_t side) {
  if (data.scenes()) return std::make_unique<Scenes>(data, seed, side);
  if (data.frames > 1) throw UsageError("data.source", "pictures do not move", "take scenes");
  return std::make_unique<Captioned>(data, side);
}

FlowDataset::FlowDataset(const Source& source, const PromptVocabulary& vocabulary, LevelConfig levels, Options options)
    : source_(source),
      vocabulary_(vocabulary),
      levels_(std::move(levels)),
      options_(options),
      workers_(std::make_unique<Workers>(options.threads)) {}

Batch FlowDataset::read(std::span<const std::int64_t> ids, std::int64_t epoch) const {
  const auto b = std::int64_t(ids.size()), side = options_.side, tokens = vocabulary_.tokens();
  at::Tensor image = at::empty({b, 3, options_.frames, side, side}, at::kByte),
             prompt = at::zeros({b, tokens}, at::kLong), sigma = at::empty({b}, at::kFloat);
  const std::size_t row = std::size_t(3 * options_.frames * side * side);
  auto* pixels = image.mutable_data_ptr<std::uint8_t>();
  auto* words = prompt.mutable_data_ptr<std::int64_t>();
  auto* levels = sigma.mutable_data_ptr<float>();
  workers_->each(b, [&](std::int64_t i) {
    const std::int64_t id = ids[std::size_t(i)];
    source_.draw(id, {pixels + std::size_t(i) * row, row});
    Rng rng(options_.seed, "flow", std::uint64_t(epoch), std::uint64_t(id));
    levels[i] = float(level(levels_, rng));
    if (rng.uniform() < options_.drop) return;
    const auto known = vocabulary_.known_ids(source_.caption(id));
    std::copy(known.begin(), known.end(), words + i * tokens);
  });
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.columns = {{"image", image}, {"prompt", prompt}, {"sigma", sigma}};
  return batch;
}

}  // namespace trireme::dit

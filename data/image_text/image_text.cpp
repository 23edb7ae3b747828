#include "data/image_text/image_text.h"

#include "comm/device.h"
#include "data/rng.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>

namespace trireme {
namespace {

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

DType dtype_of(at::ScalarType type) {
  if (type == at::kFloat) return DType::f32;
  if (type == at::kDouble) return DType::f64;
  if (type == at::kBFloat16) return DType::bf16;
  throw Error(ExitCode::bug, "pixels", std::string("none are made of type ") + c10::toString(type));
}

// A region as it travels: its own bytes, without those beside it.
struct Parcel {
  Crop crop;
  std::vector<std::uint8_t> bytes;
};

Parcel pack(const Picture& picture, const Cut& cut, int size) {
  const Crop& c = cut.crop;
  const std::uint8_t* from = picture.pixels.rgb.data() + std::size_t(cut.y) * c.pitch + std::size_t(cut.x) * 3;
  Parcel parcel{c, {}};
  const std::int64_t area = std::int64_t(c.width) * c.height;
  if (area > 2 * std::int64_t(size) * size || std::max(c.box_width, c.box_height) > most_reduction * double(size)) {
    // Levels resized here are what the device would make: resizing them to the same size changes nothing.
    Crop plain = c;
    plain.mirror = 0;
    parcel.bytes.resize(std::size_t(size) * size * 3);
    crop_resize({from, 0, &plain, 1, size, {}, DType::u8, parcel.bytes.data()}, {});
    parcel.crop = {size, size, c.mirror, size * 3, 0, 0, double(size), double(size)};
    return parcel;
  }
  const std::size_t row = std::size_t(c.width) * 3;
  parcel.crop.pitch = int(row);
  parcel.bytes.resize(row * std::size_t(c.height));
  for (int y = 0; y < c.height; ++y) std::memcpy(parcel.bytes.data() + y * row, from + std::size_t(y) * c.pitch, row);
  return parcel;
}

}  // namespace

ImageTextDataset::ImageTextDataset(const Pairs& data, const Tokenizer& tokenizer, ImageTextOptions options)
    : data_(data),
      tokenizer_(tokenizer),
      options_(options),
      workers_(std::make_unique<Workers>(options.threads)),
      staging_(options.device.is_cuda() ? std::make_unique<Staging>(options.device) : nullptr),
      broken_(std::make_unique<BrokenPictures>(data, options.broken_share)) {}

ImageTextDataset::~ImageTextDataset() = default;

ImageTextDataset::Row ImageTextDataset::training_row(std::int64_t id, std::int64_t epoch) const {
  const auto view = [&](int width, int height) {
    return random_view(Rng(options_.seed, "augment", std::uint64_t(epoch), std::uint64_t(id)), width, height,
                       options_.size, options_.crop_scale, options_.flip);
  };
  const bool squared = options_.square && options_.crop_scale >= 1;
  const Shrink shrink = [&](int w, int h) { return squared ? 1 : least_factor(view(w, h), options_.size); };
  for (std::int64_t from = id;; from = broken_->next(from)) {
    try {
      Row row{data_.picture(from, options_.dct_scaling ? shrink : Shrink{}), {}, data_.caption(from)};
      const View seen = view(row.picture.width, row.picture.height);
      if (squared)
        see_whole(row, seen.mirror);
      else
        row.cut = cut(seen, row.picture, options_.size);
      return row;
    } catch (const BrokenPicture& e) {
      broken_->add(from, e);
    }
  }
}

// Decoded whole: a measure should not depend on how fast pictures are read.
ImageTextDataset::Row ImageTextDataset::evaluation_row(std::int64_t id) const {
  Row row;
  try {
    row.picture = data_.picture(id);
  } catch (const BrokenPicture& e) {
    broken_->add(id, e);
    row.picture = {1, 1, {1, 1, {128, 128, 128}}};
  }
  see_whole(row, false);
  return row;
}

void ImageTextDataset::see_whole(Row& row, bool mirror) const {
  Picture& p = row.picture;
  if (options_.square) p = {options_.size, options_.size, options_.square(p.pixels)};
  View view = middle_view(p.width, p.height, options_.size);
  view.mirror = mirror;
  row.cut = cut(view, p, options_.size);
}

std::vector<std::string> ImageTextDataset::add_pictures(std::int64_t b, const MakeRow& make, at::ScalarType type,
                                                        bool ahead, Batch& batch) const {
  std::vector<std::string> captions(static_cast<std::size_t>(b));
  const MakeRow keep_caption = [&](std::int64_t i) {
    Row row = make(i);
    captions[std::size_t(i)] = std::move(row.caption);
    return row;
  };
  if (options_.travel || staging_)
    add_bytes(b, keep_caption, ahead, batch);
  else
    add_finished(b, keep_caption, type, batch);
  return captions;
}

void ImageTextDataset::add_finished(std::int64_t b, const MakeRow& make, at::ScalarType type, Batch& batch) const {
  const std::int64_t s = options_.size;
  const at::Tensor image = at::empty({b, 3, s, s}, type);
  auto* out = static_cast<std::uint8_t*>(image.data_ptr());
  const std::size_t bytes = std::size_t(3 * s * s) * image.element_size();
  workers_->each(b, [&](std::int64_t i) {
    const Row row = make(i);
    const Crop& c = row.cut.crop;
    const auto* from = row.picture.pixels.rgb.data() + std::size_t(row.cut.y) * c.pitch + std::size_t(row.cut.x) * 3;
    crop_resize({from, 0, &c, 1, options_.size, options_.statistics, dtype_of(type), out + std::size_t(i) * bytes}, {});
  });
  batch.columns["image"] = image;
}

void ImageTextDataset::add_bytes(std::int64_t b, const MakeRow& make, bool ahead, Batch& batch) const {
  std::vector<Parcel> parcels(static_cast<std::size_t>(b));
  workers_->each(b, [&](std::int64_t i) {
    const Row row = make(i);
    parcels[std::size_t(i)] = pack(row.picture, row.cut, options_.size);
  });
  std::size_t largest = 0;
  for (const auto& p : parcels) largest = std::max(largest, p.bytes.size());
  const std::int64_t stride = std::int64_t(largest + 15) / 16 * 16, head = b * std::int64_t(sizeof(Crop));
  const std::int64_t total = head + b * stride;
  const auto slot = staging_ && ahead ? staging_->take(total) : nullptr;
  at::Tensor all = slot ? at::Tensor() : at::empty({total}, at::kByte);
  std::uint8_t* host = slot ? slot->host() : all.data_ptr<std::uint8_t>();
  workers_->each(b, [&](std::int64_t i) {
    const Parcel& p = parcels[std::size_t(i)];
    std::memcpy(host + i * std::int64_t(sizeof(Crop)), &p.crop, sizeof(Crop));
    std::memcpy(host + head + i * stride, p.bytes.data(), p.bytes.size());
  });
  if (slot)
    all = slot->send(total);
  else if (staging_)
    all = all.to(options_.device);
  batch.staged = slot;
  batch.columns["crops"] = all.narrow(0, 0, head).view({b, std::int64_t(sizeof(Crop))});
  batch.columns["bytes"] = all.narrow(0, head, b * stride).view({b, stride});
}

Batch ImageTextDataset::read(std::span<const std::int64_t> ids, std::int64_t epoch) const {
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.epoch = epoch;
  std::vector<std::string> texts = add_pictures(
      std::int64_t(ids.size()), [&](std::int64_t i) { return training_row(ids[std::size_t(i)], epoch); }, options_.type,
      true, batch);
  for (std::size_t i = 0; i < texts.size() && options_.keyword_dropout > 0; ++i)
    texts[i] = drop_keywords(texts[i], options_.keyword_dropout,
                             Rng(options_.seed, "keywords", std::uint64_t(epoch), std::uint64_t(ids[i])));
  at::Tensor lengths;
  batch.columns["ids"] = tokenizer_.encode_batch(texts, options_.context, &lengths);
  batch.columns["end"] = lengths - 1;
  return batch;
}

at::Tensor ImageTextDataset::pixels_of(const Batch& batch, at::ScalarType type) const {
  const auto finished = batch.columns.find("image");
  if (finished != batch.columns.end()) return finished->second.to(type);
  if (batch.staged) batch.staged->wait();
  const at::Tensor bytes = batch.columns.at("bytes"), crops = batch.columns.at("crops").contiguous();
  const std::int64_t b = bytes.size(0), s = options_.size;
  const at::Tensor out = at::empty({b, 3, s, s}, bytes.options().dtype(type));
  crop_resize({bytes.const_data_ptr<std::uint8_t>(), bytes.stride(0),
               reinterpret_cast<const Crop*>(crops.const_data_ptr<std::uint8_t>()), b, options_.size,
               options_.statistics, dtype_of(type), out.data_ptr()},
              bytes.is_cuda() ? current_place(int(bytes.get_device())) : Place{});
  return out;
}

at::Tensor ImageTextDataset::pixels(std::span<const std::int64_t> ids, at::ScalarType type) const {
  Batch batch;
  add_pictures(
      std::int64_t(ids.size()), [&](std::int64_t i) { return evaluation_row(ids[std::size_t(i)]); }, type, false,
      batch);
  return pixels_of(batch, type);
}

}  // namespace trireme

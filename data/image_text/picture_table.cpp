#include "data/image_text/picture_table.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/broken_samples.h"
#include "data/image_text/caption_text.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/split.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>

namespace trireme {

PictureTable::PictureTable(PrepareSpec spec, double held_out, double broken_share)
    : path_(spec.source), items_(std::move(spec.items)), notes_(std::move(spec.notes)) {
  BrokenSamples broken;
  for (const auto& line : spec.skipped) broken.add(line);
  const auto all = size() + broken.count();
  if (items_.empty())
    throw DataError(path_, "no usable picture" + (broken.count() ? "; " + broken.summary(all) : std::string()),
                    "each picture needs a caption");
  broken.check(broken_share, all, path_);
  if (std::string line = broken.summary(all); !line.empty()) notes_.push_back(std::move(line));
  std::unordered_map<std::string_view, std::int64_t> captions, classes;
  for (std::int64_t i = 0; i < size(); ++i) {
    const PrepareItem& one = items_[std::size_t(i)];
    caption_ids_.push_back(captions.emplace(one.caption, i).first->second);
    const auto [cls, fresh] = classes.emplace(one.category, std::int64_t(classes_.size()));
    if (fresh) classes_.push_back(one.category);
    class_ids_.push_back(std::int32_t(cls->second));
  }
  hold_out(held_out_share(held_out, std::int64_t(captions.size())));
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path_, error);
  identity_ = identify(folder ? path_ : std::filesystem::path(path_).parent_path().string());
}

void PictureTable::hold_out(double share) {
  std::vector<std::int64_t> uses(items_.size());
  for (const auto c : caption_ids_) ++uses[std::size_t(c)];
  const auto most = std::max<std::int64_t>(1, size() / 100);  // or one motif would fill the test
  for (std::size_t i = 0; i < items_.size(); ++i)
    held_out_.push_back(caption_draw(items_[i].caption) < held_out_draw(share) &&
                        uses[std::size_t(caption_ids_[i])] <= most);
}

// Names below the root, sizes and captions.
std::string PictureTable::identify(const std::string& root) const {
  ContentHash all;
  for (const auto& one : items_) {
    std::error_code error;
    const std::string name = one.name.starts_with(root) ? one.name.substr(root.size()) : one.name;
    const auto bytes = std::filesystem::file_size(one.name, error);
    all.add(name.data(), name.size());
    all.add(&bytes, sizeof bytes);
    all.add(one.caption.data(), one.caption.size());
  }
  all.add(held_out_.data(), held_out_.size());
  return all.hex();
}

const PrepareItem& PictureTable::item(std::int64_t id) const {
  if (id < 0 || id >= size()) throw DataError(path_, "has no pair " + std::to_string(id));
  return items_[std::size_t(id)];
}

Picture PictureTable::picture(std::int64_t id, const Shrink& shrink) const {
  const std::string& file = item(id).name;
  std::vector<std::uint8_t> bytes;
  try {
    bytes = read_file(file, ImageLimits().max_file_bytes);
  } catch (const DataError& e) {
    throw BrokenPicture("", e.what());
  }
  return decode_picture(bytes, file, {}, shrink);
}

std::vector<std::int64_t> PictureTable::split(bool held_out, std::int64_t max_per_caption) const {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < size(); ++i)
    if (bool(held_out_[std::size_t(i)]) == held_out) ids.push_back(i);
  return keep_per_caption(std::move(ids), *this, max_per_caption);
}

std::vector<std::int64_t> PictureTable::train_ids(std::int64_t max_per_caption) const {
  return split(false, max_per_caption);
}
std::vector<std::int64_t> PictureTable::held_out_ids(std::int64_t max_per_caption) const {
  return split(true, max_per_caption);
}

}  // namespace trireme

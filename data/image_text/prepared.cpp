#include "data/image_text/prepared.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/content_hash.h"
#include "data/json.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

#include <ATen/ops/empty.h>

namespace trireme {
namespace {

// "openclipart_64.h5" was made by `trireme data openclipart --size 64`.
std::string cure_for(const std::string& path) {
  const std::string stem = std::filesystem::path(path).stem().string();
  const auto underscore = stem.rfind('_');
  const bool sized = underscore != stem.npos && underscore + 1 < stem.size() &&
                     stem.find_first_not_of("0123456789", underscore + 1) == stem.npos;
  const std::string name = sized ? stem.substr(0, underscore) : "";
  const bool known = name == "openclipart" || name == "emoji" || name.starts_with("folder");
  return "prepare it: trireme data " +
         (!known                       ? "NAME"
          : name.starts_with("folder") ? "folder --from FOLDER --size " + stem.substr(underscore + 1)
                                       : name + " --size " + stem.substr(underscore + 1)) +
         " --force";
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (auto s : shape) out += (out.size() > 1 ? "," : "") + std::to_string(s);
  return out + "]";
}

// Throws unless array `what` has this dtype and shape; -1 is any extent.
std::vector<std::int64_t> check_array(const Hdf5File& file, const std::string& path, const std::string& what,
                                      DType dtype, const std::vector<std::int64_t>& shape) {
  if (!file.has(what)) throw DataError(path, "has no array `" + what + "`", cure_for(path));
  const auto array = file.array(what);
  bool fits = array.shape.size() == shape.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == array.shape[i];
  if (array.dtype != dtype || !fits)
    throw DataError(path,
                    "array `" + what + "` is " + std::string(trireme::name(array.dtype)) + " " +
                        shape_text(array.shape) + ", expected " + std::string(trireme::name(dtype)) + " " +
                        shape_text(shape),
                    cure_for(path));
  return array.shape;
}

nlohmann::json json_in(const Hdf5File& file, const std::string& path, const std::string& what) {
  if (!file.has(what)) throw DataError(path, "has no text `" + what + "`", cure_for(path));
  const std::string text = file.read_text(what);
  auto json = parse_json(text);
  if (json.is_discarded())
    throw DataError(path, "text `" + what + "` is not JSON, or nests deeper than 8 levels", cure_for(path));
  return json;
}

template <class T>
std::vector<T> read_all(const Hdf5File& file, const std::string& what, std::int64_t n) {
  std::vector<T> out(n);
  if (n > 0) file.read_rows(what, 0, n, out.data());
  return out;
}

Hdf5File open_prepared(const std::string& path) {
  std::error_code error;
  if (const std::string cure = cure_for(path); !std::filesystem::exists(path, error))
    throw DataError(
        path, "no such file",
        cure.find(" NAME ") == cure.npos
            ? cure
            : "name what trireme data prepared (openclipart, emoji), or a path: ./mine.h5, list.csv, pictures/");
  try {
    return Hdf5File::open(path);
  } catch (const DataError& e) {
    throw DataError("", e.what(), cure_for(path));
  }
}

}  // namespace

std::string prepared_path(const std::string& name, int size) {
  return data_cache(name + "_" + std::to_string(size) + ".h5");
}

ImageTextData::ImageTextData(const std::string& path, std::int64_t cache_bytes)
    : path_(path), file_(open_prepared(path)) {
  auto wrong = [&](const std::string& what) { return DataError(path_, what, cure_for(path_)); };
  const auto meta = json_in(file_, path, "meta"), classes = json_in(file_, path, "classes");
  if (!meta.is_object() || !meta.contains("format_version") || meta["format_version"] != 1)
    throw wrong("is of another format version than 1");
  meta_ = meta.dump();
  const auto text = [&](const char* key) {
    return meta.contains(key) && meta[key].is_string() ? meta[key].get<std::string>() : std::string();
  };
  name_ = text("name"), source_ = text("source"), stored_hash_ = text("pixels_hash");
  if (!classes.is_array()) throw wrong("text `classes` is not a list");
  for (const auto& c : classes) {
    if (!c.is_string()) throw wrong("text `classes` is not a list of names");
    classes_.push_back(c);
  }

  if (meta.contains("templates")) {
    if (!meta["templates"].is_array()) throw wrong("`templates` of text `meta` is not a list");
    for (const auto& t : meta["templates"]) {
      if (!t.is_string()) throw wrong("`templates` of text `meta` is not a list of prompts");
      templates_.push_back(t);
    }
  }

  const auto shape = check_array(file_, path, "images", DType::u8, {-1, 3, -1, -1});
  n_ = shape[0];
  if (n_ == 0 || shape[2] == 0 || shape[2] != shape[3] || shape[2] > (1 << 14))
    throw wrong("array `images` is " + shape_text(shape) + ", expected square pictures");
  size_ = int(shape[2]);
  const auto bytes = check_array(file_, path, "caption_bytes", DType::u8, {-1});
  check_array(file_, path, "caption_offsets", DType::i64, {n_ + 1});
  for (const char* name : {"caption_id", "class_id"}) check_array(file_, path, name, DType::i64, {n_});
  check_array(file_, path, "held_out", DType::u8, {n_});

  caption_offsets_ = read_all<std::int64_t>(file_, "caption_offsets", n_ + 1);
  if (caption_offsets_.front() != 0 || caption_offsets_.back() != bytes[0] ||
      !std::is_sorted(caption_offsets_.begin(), caption_offsets_.end()))
    throw wrong("array `caption_offsets` does not cut up `caption_bytes`");
  if (bytes[0] == 0) throw wrong("has no captions");
  caption_bytes_ = read_all<std::uint8_t>(file_, "caption_bytes", bytes[0]);
  caption_ids_ = read_all<std::int64_t>(file_, "caption_id", n_);
  class_ids_ = read_all<std::int64_t>(file_, "class_id", n_);
  held_out_ = read_all<std::uint8_t>(file_, "held_out", n_);
  for (std::int64_t i = 0; i < n_; ++i) {
    if (caption_ids_[i] < 0 || caption_ids_[i] >= n_) throw wrong("row " + std::to_string(i) + " has a bad caption_id");
    if (class_ids_[i] < 0 || class_ids_[i] >= std::int64_t(classes_.size()))
      throw wrong("row " + std::to_string(i) + " has a bad class_id");
    if (held_out_[i] > 1) throw wrong("row " + std::to_string(i) + " has a bad held_out flag");
  }
  const std::int64_t total = n_ * 3 * size_ * size_;
  if (total <= cache_bytes) {
    pixels_.resize(total);
    try {
      file_.read_rows("images", 0, n_, pixels_.data());
    } catch (const DataError& e) {
      throw DataError("", e.what(), cure_for(path_));
    }
  }
}

at::Tensor ImageTextData::images(std::span<const std::int64_t> ids) const {
  for (auto id : ids)
    if (id < 0 || id >= n_)
      throw DataError(path_, "has no row " + std::to_string(id) + " (rows 0 to " + std::to_string(n_ - 1) + ")",
                      "was the file prepared anew during the run?");
  at::Tensor out = at::empty({std::int64_t(ids.size()), 3, size_, size_}, at::kByte);
  auto* p = static_cast<std::uint8_t*>(out.mutable_data_ptr());
  if (ids.empty()) return out;
  if (pixels_.empty()) {
    file_.read_rows("images", ids, p);
    return out;
  }
  const std::size_t row = std::size_t(3) * size_ * size_;
  for (std::size_t i = 0; i < ids.size(); ++i)
    std::memcpy(p + i * row, pixels_.data() + std::size_t(ids[i]) * row, row);
  return out;
}

// Planes to interleaved pixels.
Picture ImageTextData::picture(std::int64_t id, const Shrink&) const {
  const at::Tensor planes = images({&id, 1});
  const auto* in = planes.const_data_ptr<std::uint8_t>();
  const std::size_t plane = std::size_t(size_) * size_;
  Picture out{size_, size_, {size_, size_, std::vector<std::uint8_t>(3 * plane)}};
  for (std::size_t i = 0; i < plane; ++i)
    for (std::size_t c = 0; c < 3; ++c) out.pixels.rgb[3 * i + c] = in[c * plane + i];
  return out;
}

std::string ImageTextData::caption(std::int64_t id) const {
  const auto first = caption_offsets_.at(id), last = caption_offsets_.at(id + 1);
  return {reinterpret_cast<const char*>(caption_bytes_.data()) + first, std::size_t(last - first)};
}

std::vector<std::int64_t> ImageTextData::split(bool held_out, std::int64_t max_per_caption) const {
  std::map<std::int64_t, std::vector<std::int64_t>> by_caption;
  for (std::int64_t i = 0; i < n_; ++i)
    if (bool(held_out_[i]) == held_out) by_caption[caption_ids_[i]].push_back(i);
  std::vector<std::int64_t> out;
  for (const auto& [caption, rows] : by_caption) {
    const auto count = std::int64_t(rows.size());
    const auto keep = max_per_caption > 0 ? std::min(count, max_per_caption) : count;
    for (std::int64_t k = 0; k < keep; ++k) out.push_back(rows[k * count / keep]);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::string ImageTextData::pixels_hash() const {
  if (pixels_.empty() && !stored_hash_.empty()) return stored_hash_;
  const std::size_t row = std::size_t(3) * size_ * size_;
  constexpr std::int64_t block = 256;
  std::vector<std::uint8_t> rows(pixels_.empty() ? block * row : 0);
  ContentHash all;
  for (std::int64_t first = 0; first < n_; first += block) {
    const std::int64_t count = std::min(block, n_ - first);
    if (pixels_.empty()) file_.read_rows("images", first, count, rows.data());
    const std::uint8_t* p = pixels_.empty() ? rows.data() : pixels_.data() + std::size_t(first) * row;
    for (std::int64_t i = 0; i < count; ++i) {
      ContentHash one;
      one.add(p + std::size_t(i) * row, row);
      all.add(one);
    }
  }
  return all.hex();
}

const std::string& ImageTextData::identity() const {
  std::call_once(identified_, [this] {
    ContentHash all;
    const std::string pixels = pixels_hash();
    all.add(pixels.data(), pixels.size());
    all.add(&size_, sizeof size_);
    const auto add = [&](const auto& v) { all.add(v.data(), v.size() * sizeof v[0]); };
    add(caption_bytes_), add(caption_offsets_), add(caption_ids_), add(held_out_);
    identity_ = all.hex();
  });
  return identity_;
}

}  // namespace trireme

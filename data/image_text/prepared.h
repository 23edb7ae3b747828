// The one prepared image-text format, an HDF5 file:
//   images u8 [n,3,S,S]; caption_bytes u8 [total] (UTF-8), caption_offsets i64 [n+1]; caption_id i64 [n]
//   (equal captions, equal id); class_id i64 [n]; held_out u8 [n]; texts `classes` (JSON list of names) and
//   `meta` (JSON object; its `templates` are the prompts of a class, if there are any).
// A caption is held out as a whole, chosen by its hash, so that the split stays the same when a set grows. `meta` has
// the hash of all pixels, taken when they were prepared.
#pragma once
#include "data/hdf5.h"
#include "data/image_text/pairs.h"

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct PrepareItem {
  std::string name;                   // for messages: the file, or the glyph
  std::string caption;                // UTF-8, not empty
  std::string category;               // class name, may be ""
  std::optional<bool> held_out = {};  // none: by the caption's hash
};

struct PrepareSpec {
  std::string name, source;  // data set name; where it came from, for the record
  std::string out;           // the finished file appears here by rename, or not at all
  int size = 64;             // S
  int threads = 2;
  std::vector<PrepareItem> items;
  std::vector<std::string> templates;  // prompts of a class, see Pairs; may be empty
  std::vector<std::string> skipped;    // found unusable before decoding, one line each
  std::vector<std::string> notes;      // for the summary
  std::function<Image(std::size_t)>
      decode;  // called from several threads; DataError = skip the item, counted and named
  std::function<void(std::size_t done, std::size_t total)> progress;  // may be empty
};

struct PrepareReport {
  std::int64_t images = 0, captions = 0, classes = 0, held_out_images = 0, held_out_captions = 0;
  std::int64_t duplicates = 0;       // same pixels after the resize: the first item is kept
  std::vector<std::string> skipped;  // one line each: name and reason
  double seconds = 0;
};

// ${XDG_CACHE_HOME:-~/.cache}/trireme/data/NAME_SIZE.h5
std::string prepared_path(const std::string& name, int size);

// Throws DataError when nothing is left or the disk fails; `out` is then as it was before.
PrepareReport prepare_images(const PrepareSpec& spec);

// 10 % of all captions, by hash. Captions of more than 1 % of the images stay in training: one motif would
// fill the test.
bool caption_held_out(const std::string& caption);

// Reader; opening verifies names, shapes, dtypes and ranges, and throws DataError with the cure. Thread safe.
class ImageTextData : public Pairs {
 public:
  // Images up to cache_bytes in all are kept in memory.
  explicit ImageTextData(const std::string& path, std::int64_t cache_bytes = std::int64_t(1) << 30);

  std::int64_t size() const override { return n_; }
  int image_size() const { return size_; }
  const std::string& path() const override { return path_; }
  const std::string& name() const { return name_; }
  const std::string& source() const { return source_; }  // where it was prepared from, one spelling a place
  const std::string& meta() const { return meta_; }      // JSON
  // What is trained on, in 32 digits: pixels, captions and split, row by row; not names, classes or places. Pixels that
  // are kept in memory are hashed here, those of a larger file were when it was prepared. (A larger file of an older
  // version has no such hash: the first call reads it through.)
  const std::string& identity() const override;
  at::Tensor images(std::span<const std::int64_t> ids) const;  // u8 [b,3,S,S]
  Picture picture(std::int64_t id, const Shrink& shrink = {}) const override;
  std::string caption(std::int64_t id) const override;
  std::int64_t caption_id(std::int64_t id) const override { return caption_ids_.at(id); }
  std::int64_t class_id(std::int64_t id) const override { return class_ids_.at(id); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::vector<std::string> templates() const override { return templates_; }
  std::vector<int> prepared_sizes() const override { return {size_}; }
  std::vector<std::int64_t> train_ids(std::int64_t max_per_caption = 0) const override {
    return split(false, max_per_caption);
  }
  std::vector<std::int64_t> held_out_ids(std::int64_t max_per_caption = 0) const override {
    return split(true, max_per_caption);
  }

 private:
  std::vector<std::int64_t> split(bool held_out, std::int64_t max_per_caption) const;
  std::string pixels_hash() const;

  std::string path_, name_, source_, meta_;
  std::string stored_hash_;  // of the pixels; empty: an older file
  Hdf5File file_;
  std::int64_t n_ = 0;
  int size_ = 0;
  std::vector<std::uint8_t> caption_bytes_, held_out_, pixels_;  // pixels_ empty: read from the file
  std::vector<std::int64_t> caption_offsets_, caption_ids_, class_ids_;
  std::vector<std::string> classes_, templates_;
  mutable std::once_flag identified_;
  mutable std::string identity_;
};

}  // namespace trireme

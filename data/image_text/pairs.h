// Image-text pairs by number, wherever they lie: one prepared file, tars, or a table of paths.
#pragma once
#include "data/image_text/images.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace trireme {

// Ids [0, size) are stable: they number rows of tables that checkpoints hold, and do not depend on ranks or epochs.
// All calls are thread safe: workers decode at once.
class Pairs {
 public:
  virtual ~Pairs() = default;
  virtual std::int64_t size() const = 0;
  virtual const std::string& path() const = 0;  // for messages
  // What is trained on, by content: equal pairs may lie elsewhere. For data too large to read: its index and captions.
  virtual const std::string& identity() const = 0;
  virtual std::string caption(std::int64_t id) const = 0;
  virtual std::int64_t caption_id(std::int64_t id) const = 0;  // equal captions, equal number
  virtual std::int64_t class_id(std::int64_t id) const = 0;    // -1: none
  virtual const std::vector<std::string>& classes() const = 0;
  // The data's own prompts of a class, {c} or {} standing for its name; empty: it has none.
  virtual std::vector<std::string> templates() const { return {}; }
  // `shrink`: a JPEG may be decoded at a fraction of its size (images.h). BrokenPicture naming file and member, if it
  // cannot be decoded; DataError for what concerns all of them.
  virtual Picture picture(std::int64_t id, const Shrink& shrink = {}) const = 0;
  // Pixels a side of the pictures of each source that is trained on, where they were prepared as squares; 0: of any
  // size.
  virtual std::vector<int> prepared_sizes() const { return {0}; }
  // All of them were fitted into a white square when they were prepared.
  bool prepared() const {
    const auto sizes = prepared_sizes();
    return std::find(sizes.begin(), sizes.end(), 0) == sizes.end();
  }
  // Ascending ids. max_per_caption > 0 keeps that many images of a caption, spread evenly over its images.
  virtual std::vector<std::int64_t> train_ids(std::int64_t max_per_caption = 0) const = 0;
  virtual std::vector<std::int64_t> held_out_ids(std::int64_t max_per_caption = 0) const = 0;
  // One line each that a user should see at the start: what was left out.
  virtual std::vector<std::string> notes() const { return {}; }
};

}  // namespace trireme

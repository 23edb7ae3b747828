// Picture files as training data, where they lie: a table of paths and captions, or a folder with a .txt beside each.
#pragma once
#include "data/image_text/pairs.h"
#include "data/image_text/prepared.h"

namespace trireme {

// Ids are the rows of the table, or the files in the order of paths, without those that cannot be used (see folder.h,
// table.h); these are counted as broken. Memory: paths and captions, some 200 bytes a pair.
class PictureTable : public Pairs {
 public:
  // `spec` from table_data() or folder_data(). The held-out captions as those of tars (split.h). DataError: none left,
  // or too many broken.
  PictureTable(PrepareSpec spec, double held_out, double broken_share);

  std::int64_t size() const override { return std::int64_t(items_.size()); }
  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return identity_; }
  std::string caption(std::int64_t id) const override { return item(id).caption; }
  std::int64_t caption_id(std::int64_t id) const override { return (void)item(id), caption_ids_[std::size_t(id)]; }
  std::int64_t class_id(std::int64_t id) const override { return (void)item(id), class_ids_[std::size_t(id)]; }
  const std::vector<std::string>& classes() const override { return classes_; }
  Picture picture(std::int64_t id, const Shrink& shrink = {}) const override;
  std::vector<std::int64_t> train_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::int64_t> held_out_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::string> notes() const override { return notes_; }

 private:
  const PrepareItem& item(std::int64_t id) const;
  void hold_out(double share);
  std::string identify(const std::string& root) const;
  std::vector<std::int64_t> split(bool held_out, std::int64_t max_per_caption) const;

  std::string path_, identity_;
  std::vector<PrepareItem> items_;
  std::vector<std::int64_t> caption_ids_;
  std::vector<std::int32_t> class_ids_;
  std::vector<std::uint8_t> held_out_;
  std::vector<std::string> classes_, notes_;
};

}  // namespace trireme

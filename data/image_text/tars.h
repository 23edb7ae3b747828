// Pairs in WebDataset tars, read where they lie.
#pragma once
#include "data/image_text/pairs.h"
#include "data/image_text/tar_index.h"
#include "data/image_text/webdataset.h"

#include <memory>
#include <mutex>

namespace trireme {

struct TarsOptions : TarIndexOptions {
  double held_out = 0.1;       // share of the captions, see held_out_share()
  double broken_share = 0.01;  // more broken samples than that are an error; 0: a tar that is cut short is one, too
  bool whole = false;          // a tar that is cut short is an error at any share
};

// Ids: the order of the shards as listed and of the samples in each; with `index_key` the number that each sample's
// JSON says (numbers that no sample has are no ids of either split). Memory: the index, 32 bytes a sample, shared by
// the processes of a node where the cache is theirs; with `index_key` 4 more for each number. Of all sources together
// at most 256 files stay open, and a quarter of what the process may have.
class Tars : public Pairs {
 public:
  // DataError as TarIndex; too many broken samples; numbers far above the count of samples.
  Tars(const std::string& list, const TarsOptions& options = {});

  std::int64_t size() const override { return size_; }
  const std::string& path() const override { return list_; }
  const std::string& identity() const override { return identity_; }
  std::string caption(std::int64_t id) const override;
  std::int64_t caption_id(std::int64_t id) const override;
  std::int64_t class_id(std::int64_t id) const override { return row(id).cls; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::vector<std::string> templates() const override { return templates_; }
  Picture picture(std::int64_t id, const Shrink& shrink = {}) const override;
  std::vector<std::int64_t> train_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::int64_t> held_out_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::string> notes() const override;

  // The bytes of the text or JSON member as they are.
  std::string raw_text(std::int64_t id) const;
  bool has_json_caption(std::int64_t id) const { return row(id).text_bytes & TarRow::json; }
  const TarIndex& index() const { return index_; }

 private:
  const TarRow& row(std::int64_t id) const;
  std::size_t shard_of(std::int64_t row) const;
  std::shared_ptr<const TarFile> open(std::size_t shard) const;
  void number_by_key();
  void hold_out(double share);
  std::vector<std::int64_t> split(bool held_out, std::int64_t max_per_caption) const;

  std::string list_;
  TarIndex index_;
  std::int64_t size_ = 0;
  std::vector<std::uint32_t> row_of_;   // with an index key: of each id, TarRow::none where there is none
  std::vector<std::uint8_t> held_out_;  // of each row
  std::vector<std::string> classes_, templates_;
  std::string identity_;
  mutable std::mutex mutex_;
  mutable std::vector<std::weak_ptr<const TarFile>> open_;  // of each shard
};

}  // namespace trireme

// Where the samples of a list of tars lie: 32 bytes each, kept in the cache and mapped, so that the ranks of a node
// share them and a second start reads no tar.
#pragma once
#include "data/image_text/broken_samples.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trireme {

struct TarRow {
  static constexpr std::uint32_t json = 1u << 31, none = ~0u;
  std::uint32_t picture_block = 0, picture_bytes = 0;  // offset in the shard / 512
  std::uint32_t text_block = 0, text_bytes = 0;        // `json`: the caption is a member of a JSON text. 0 bytes: none
  std::uint32_t caption = 0;                           // the first row with an equal caption
  std::uint32_t draw = 0;                              // caption_draw()
  std::int32_t cls = -1;                               // -1: none
  std::uint32_t key = none;                            // the sample's own number in JSON, if asked for
};
static_assert(sizeof(TarRow) == 32);

struct TarShard {
  std::string path;
  std::int64_t bytes = 0, changed = 0;  // changed: ns, as the file system says
  std::int64_t first = 0;               // its first row
};

struct TarIndexOptions {
  std::string index_key;     // JSON member with the sample's number; empty: samples are numbered in order
  bool need_caption = true;  // a picture without one is broken; off: a class will do
  int threads = 0;           // that read shards; 0: one a core, at most 16
};

// Rows in the order of the shards as listed, then as they lie in the shard.
class TarIndex {
 public:
  // From the cache if it knows these very files (path, size, time of change), else read from the tars and kept there;
  // where it cannot be written, in memory alone. DataError: a shard that is missing or no tar, no sample at all.
  // Several processes may do this at once: each writes a file of its own and renames it.
  TarIndex(const std::vector<std::string>& tars, const TarIndexOptions& options);
  ~TarIndex();
  TarIndex(const TarIndex&) = delete;
  TarIndex& operator=(const TarIndex&) = delete;

  std::span<const TarRow> rows() const { return rows_; }
  const std::vector<TarShard>& shards() const { return shards_; }
  const BrokenSamples& broken() const { return broken_; }
  // One line for each shard that could not be read to its end: it is cut short, or a header is broken. How many samples
  // are lost is unknown, so they are none of the broken ones.
  const std::vector<std::string>& cut() const { return cut_; }
  // Keys, sizes and captions of all samples in their order, not their place: 32 digits.
  const std::string& identity() const { return identity_; }
  bool from_cache() const { return mapped_ != nullptr; }

 private:
  void build(const TarIndexOptions& options);
  bool load(const std::string& file);
  void save(const std::string& file) const;

  std::vector<TarShard> shards_;
  std::vector<TarRow> own_;
  std::span<const TarRow> rows_;
  void* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  BrokenSamples broken_;
  std::vector<std::string> cut_;
  std::string identity_;
};

// The caption in a JSON text (member `caption`), cleaned; empty: none.
std::string json_caption(const std::string& text);

}  // namespace trireme

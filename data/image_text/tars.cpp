#include "data/image_text/tars.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/caption_text.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/split.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <utility>

#include <sys/resource.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t block_bytes = 512;

// The lines of a file beside the shards or one folder above (CLIP_benchmark's place); none: it is not there.
std::vector<std::string> lines_beside(const std::string& shard, const char* file) {
  std::vector<std::string> lines;
  const fs::path folder = fs::path(real_path(shard)).parent_path();
  for (const auto& place : {folder, folder.parent_path()}) {
    std::ifstream in(place / file);
    for (std::string line; std::getline(in, line);) lines.push_back(caption_of(line));
    if (!lines.empty()) break;
  }
  return lines;
}

// By classnames.txt, else the numbers themselves.
std::vector<std::string> class_names(const std::string& shard, std::int32_t largest) {
  std::vector<std::string> names;
  if (largest >= 0) names = lines_beside(shard, "classnames.txt");
  for (auto i = std::int32_t(names.size()); i <= largest; ++i) names.push_back(std::to_string(i));
  return names;
}

// The files that were opened last stay open: of all sources of the process, whose limit they share.
std::shared_ptr<const TarFile> open_tar(const std::string& path) {
  static std::mutex mutex;
  static std::deque<std::shared_ptr<const TarFile>> kept;
  rlimit limit{256 * 4, 256 * 4};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::size_t most = std::clamp<rlim_t>(limit.rlim_cur / 4, 1, 256);
  {
    std::lock_guard lock(mutex);
    while (kept.size() >= most) kept.pop_front();
  }
  auto file = std::make_shared<const TarFile>(path);
  std::lock_guard lock(mutex);
  return kept.emplace_back(std::move(file));
}

// Of shards whose end could not be read.
std::string told(const std::vector<std::string>& cut) {
  std::string line = cut.size() == 1 ? "a tar is damaged and all behind that place is lost: "
                                     : std::to_string(cut.size()) + " tars are damaged and all behind is lost: ";
  for (std::size_t i = 0; i < std::min(cut.size(), BrokenSamples::named); ++i) line += (i ? " | " : "") + cut[i];
  return line;
}

}  // namespace

Tars::Tars(const std::string& list, const TarsOptions& options) : list_(list), index_(list_tars(list), options) {
  const auto n = std::int64_t(index_.rows().size());
  if (!index_.cut().empty() && (options.whole || options.broken_share == 0))
    throw DataError(list_, told(index_.cut()), options.whole ? "nothing of it is used" : "or raise data.broken_share");
  index_.broken().check(options.broken_share, n + index_.broken().count(), list_);
  size_ = n;
  if (!options.index_key.empty()) number_by_key();
  hold_out(options.held_out);
  std::int32_t largest = -1;
  for (const auto& r : index_.rows()) largest = std::max(largest, r.cls);
  classes_ = class_names(index_.shards()[0].path, largest);
  if (!classes_.empty()) {
    templates_ = lines_beside(index_.shards()[0].path, "zeroshot_classification_templates.txt");
    std::erase(templates_, "");
  }
  open_.resize(index_.shards().size());
  ContentHash all;
  all.add(index_.identity().data(), index_.identity().size());
  all.add(held_out_.data(), held_out_.size());
  identity_ = all.hex();
}

void Tars::number_by_key() {
  const auto rows = index_.rows();
  std::int64_t largest = 0;
  for (const auto& r : rows) largest = std::max(largest, std::int64_t(r.key));
  if (largest / 16 > std::int64_t(rows.size()) + 65536)
    throw DataError(
        list_, "its largest number is " + std::to_string(largest) + ", of " + std::to_string(rows.size()) + " samples",
        "number them from 0, or leave data.index_key empty");
  size_ = largest + 1;
  row_of_.assign(std::size_t(size_), TarRow::none);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto& slot = row_of_[rows[i].key];
    if (slot != TarRow::none)
      throw DataError(list_, "two samples have the number " + std::to_string(rows[i].key),
                      "number each sample once, or leave data.index_key empty");
    slot = std::uint32_t(i);
  }
}

void Tars::hold_out(double share) {
  const auto rows = index_.rows();
  std::vector<std::uint32_t> uses(rows.size());
  for (const auto& r : rows) ++uses[r.caption];
  const auto captions = std::int64_t(std::count_if(uses.begin(), uses.end(), [](auto u) { return u > 0; }));
  const std::uint64_t below = held_out_draw(held_out_share(share, captions));
  const auto most = std::max<std::size_t>(1, rows.size() / 100);  // or one motif would fill the test
  held_out_.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) held_out_[i] = rows[i].draw < below && uses[rows[i].caption] <= most;
}

const TarRow& Tars::row(std::int64_t id) const {
  const bool known = id >= 0 && id < size_ && (row_of_.empty() || row_of_[std::size_t(id)] != TarRow::none);
  if (!known) throw DataError(list_, "has no sample " + std::to_string(id));
  return index_.rows()[row_of_.empty() ? std::size_t(id) : row_of_[std::size_t(id)]];
}

std::size_t Tars::shard_of(std::int64_t row) const {
  const auto& shards = index_.shards();
  const auto after = std::upper_bound(shards.begin(), shards.end(), row,
                                      [](std::int64_t r, const TarShard& s) { return r < s.first; });
  return std::size_t(after - shards.begin()) - 1;
}

// Whoever still reads from a file that another takes the place of holds it.
std::shared_ptr<const TarFile> Tars::open(std::size_t shard) const {
  std::lock_guard lock(mutex_);
  if (auto file = open_[shard].lock()) return file;
  auto fresh = open_tar(index_.shards()[shard].path);
  if (fresh->size() != index_.shards()[shard].bytes)
    throw DataError(fresh->path(), "has changed since it was indexed", "start the run again");
  open_[shard] = fresh;
  return fresh;
}

Picture Tars::picture(std::int64_t id, const Shrink& shrink) const {
  const TarRow& r = row(id);
  const auto file = open(shard_of(&r - index_.rows().data()));
  thread_local std::vector<std::uint8_t> bytes;
  bytes.resize(r.picture_bytes);
  const std::int64_t offset = r.picture_block * block_bytes;
  file->read(offset, bytes);
  try {
    return decode_picture(bytes, file->path(), {}, shrink);
  } catch (const BrokenPicture& e) {
    std::array<std::uint8_t, 100> name{};  // of the header before it
    file->read(offset - block_bytes, name);
    const auto* text = reinterpret_cast<const char*>(name.data());
    throw BrokenPicture("", "`" + std::string(text, strnlen(text, name.size())) + "` in " + e.what());
  }
}

std::string Tars::raw_text(std::int64_t id) const {
  const TarRow& r = row(id);
  std::string text(r.text_bytes & ~TarRow::json, '\0');
  if (!text.empty())
    open(shard_of(&r - index_.rows().data()))
        ->read(r.text_block * block_bytes, {reinterpret_cast<std::uint8_t*>(text.data()), text.size()});
  return text;
}

std::string Tars::caption(std::int64_t id) const {
  const std::string text = raw_text(id);
  return has_json_caption(id) ? json_caption(text) : caption_of(text);
}

std::int64_t Tars::caption_id(std::int64_t id) const { return row(id).caption; }

std::vector<std::int64_t> Tars::split(bool held_out, std::int64_t max_per_caption) const {
  std::vector<std::int64_t> ids;
  for (std::int64_t id = 0; id < size_; ++id) {
    const std::uint32_t r = row_of_.empty() ? std::uint32_t(id) : row_of_[std::size_t(id)];
    if (r != TarRow::none && bool(held_out_[r]) == held_out) ids.push_back(id);
  }
  return keep_per_caption(std::move(ids), *this, max_per_caption);
}

std::vector<std::int64_t> Tars::train_ids(std::int64_t max_per_caption) const { return split(false, max_per_caption); }
std::vector<std::int64_t> Tars::held_out_ids(std::int64_t max_per_caption) const {
  return split(true, max_per_caption);
}

std::vector<std::string> Tars::notes() const {
  const auto n = std::int64_t(index_.rows().size()) + index_.broken().count();
  std::vector<std::string> lines;
  if (!index_.cut().empty()) lines.push_back(told(index_.cut()));
  if (const std::string line = index_.broken().summary(n); !line.empty()) lines.push_back(line);
  return lines;
}

}  // namespace trireme

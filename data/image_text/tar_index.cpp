#include "data/image_text/tar_index.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/caption_text.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/webdataset.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <exception>
#include <numeric>
#include <thread>

#include <nlohmann/json.hpp>

#include <sys/stat.h>

namespace trireme {
namespace {

constexpr std::int64_t max_picture = 1 << 28, block_bytes = 512;
constexpr std::int32_t max_class = 1 << 20;
using Words = std::array<std::uint64_t, 2>;

// One shard as it was read.
struct Read {
  std::vector<TarRow> rows;
  std::vector<Words> captions;  // hash of each row's
  ContentHash content;
  std::vector<std::string> broken;  // the first few
  std::int64_t broken_count = 0;
  std::string cut;  // why its end could not be read; empty: it was

  void skip(const std::string& line) {
    if (broken_count++ < std::int64_t(BrokenSamples::named)) broken.push_back(line);
  }
};

std::uint32_t number_in(const nlohmann::json& json, const std::string& member) {
  if (!json.is_object() || !json.contains(member)) return TarRow::none;
  const auto& value = json[member];
  std::string digits = value.is_string() ? value.get<std::string>() : "";
  if (value.is_number_unsigned()) digits = value.dump();
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos)
    return TarRow::none;
  const auto number = std::stoull(digits);
  return number < TarRow::none ? std::uint32_t(number) : TarRow::none;
}

// The class of `text`, decimal digits; < 0: none.
std::int32_t class_in(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  if (text.empty() || text.size() > 7 || text.find_first_not_of("0123456789") != text.npos) return -1;
  const int number = std::stoi(text);
  return number < max_class ? number : -1;
}

// Why a sample is left out.
struct Unusable {
  std::string why;
};

// What one sample says; throws Unusable, or DataError.
void read_sample(TarSamples& tar, const TarSample& s, const TarIndexOptions& options, Read& out) {
  if (s.repeated) throw Unusable{"has two members of one extension"};
  const TarMember *picture = s.picture(), *text = s.text(), *json = s.find({"json"}), *cls = s.find({"cls"});
  if (!picture) throw Unusable{"has no picture (jpg, jpeg, png or webp)"};
  if (picture->size <= 0 || picture->size > max_picture)
    throw Unusable{"has a picture of " + std::to_string(picture->size) + " bytes"};
  TarRow row;
  row.picture_block = std::uint32_t(picture->offset / block_bytes);
  row.picture_bytes = std::uint32_t(picture->size);
  std::string caption;
  const auto take = [&](const TarMember& m, std::string words, std::uint32_t flag) {
    caption = std::move(words);
    row.text_block = std::uint32_t(m.offset / block_bytes);
    row.text_bytes = caption.empty() ? 0 : std::uint32_t(m.size) | flag;
  };
  if (text) take(*text, caption_of(tar.text(*text)), 0);
  if (json && (caption.empty() || !options.index_key.empty())) {
    const std::string words = tar.text(*json);
    if (caption.empty()) take(*json, json_caption(words), TarRow::json);
    if (!options.index_key.empty())
      row.key = number_in(nlohmann::json::parse(words, nullptr, false), options.index_key);
  }
  if (!options.index_key.empty() && row.key == TarRow::none)
    throw Unusable{"has no number `" + options.index_key + "` in a .json"};
  if (cls) row.cls = class_in(tar.text(*cls));
  if (cls && row.cls < 0) throw Unusable{"has a .cls that is no number of a class"};
  if (caption.empty() && (options.need_caption || row.cls < 0)) throw Unusable{"has no caption (txt or json)"};
  row.draw = caption_draw(caption);
  ContentHash hash;
  hash.add(caption.data(), caption.size());
  out.content.add(s.key.data(), s.key.size());
  out.content.add(&picture->size, sizeof picture->size);
  out.content.add(hash);
  out.content.add(&row.cls, sizeof row.cls);
  out.content.add(&row.key, sizeof row.key);
  out.captions.push_back(hash.words());
  out.rows.push_back(row);
}

Read read_shard(const TarShard& shard, const TarIndexOptions& options) {
  Read out;
  const TarFile file(shard.path);
  if (file.size() > block_bytes * std::int64_t(TarRow::none))
    throw DataError(shard.path, "is larger than 2 TiB", "cut it into shards");
  TarSamples samples(file);
  while (true) {
    std::optional<TarSample> sample;
    try {
      sample = samples.next();
    } catch (const DataError& e) {
      if (!samples.is_tar()) throw;
      out.cut = e.what();
      return out;
    }
    if (!sample) {
      if (out.rows.empty() && out.broken_count == 0) out.skip(shard.path + ": holds no samples");
      return out;
    }
    try {
      read_sample(samples, *sample, options, out);
    } catch (const Unusable& u) {
      out.skip(shard.path + ": `" + sample->key + "` " + u.why);
    } catch (const DataError& e) {
      out.skip(e.what());
    }
  }
}

// All shards on several threads; the first error in the order of shards is thrown.
std::vector<Read> read_all(const std::vector<TarShard>& shards, const TarIndexOptions& options) {
  std::vector<Read> all(shards.size());
  std::vector<std::exception_ptr> errors(shards.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i; (i = next++) < shards.size();) try {
        all[i] = read_shard(shards[i], options);
      } catch (...) {
        errors[i] = std::current_exception();
        next = shards.size();
      }
  };
  const int cores = std::clamp(int(std::thread::hardware_concurrency()), 1, 16);
  const auto threads = std::min(shards.size(), std::size_t(options.threads > 0 ? options.threads : cores));
  {
    std::vector<std::jthread> pool;
    for (std::size_t t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
  }
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
  return all;
}

// Equal captions get the number of their first row.
void number_captions(std::vector<TarRow>& rows, const std::vector<Words>& captions) {
  std::vector<std::uint32_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return captions[a] != captions[b] ? captions[a] < captions[b] : a < b;
  });
  for (std::size_t i = 0; i < order.size(); ++i)
    rows[order[i]].caption =
        i > 0 && captions[order[i]] == captions[order[i - 1]] ? rows[order[i - 1]].caption : order[i];
}

TarShard stat_of(const std::string& path) {
  struct stat s {};
  if (stat(path.c_str(), &s) != 0)
    throw DataError(path, "no such tar file", "check the path; a list of shards must be complete");
  return {path, s.st_size, std::int64_t(s.st_mtim.tv_sec) * 1000000000 + s.st_mtim.tv_nsec, 0};
}

}  // namespace

std::string json_caption(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("caption") || !json["caption"].is_string()) return {};
  return caption_of(json["caption"].get<std::string>());
}

TarIndex::TarIndex(const std::vector<std::string>& tars, const TarIndexOptions& options) {
  ContentHash key;
  const auto add = [&](const std::string& text) { key.add(text.data(), text.size()); };
  add("tar index 2"), add(options.index_key), add(options.need_caption ? "caption" : "class");
  for (const auto& path : tars) {
    shards_.push_back(stat_of(path));
    add(real_path(path));
    key.add(&shards_.back().bytes, 2 * sizeof(std::int64_t));
  }
  const std::string file = data_cache("tars-" + key.hex() + ".idx");
  if (load(file)) return;
  build(options);
  save(file);
}

void TarIndex::build(const TarIndexOptions& options) {
  auto all = read_all(shards_, options);
  std::vector<Words> captions;
  ContentHash content;
  for (std::size_t i = 0; i < all.size(); ++i) {
    Read& r = all[i];
    shards_[i].first = std::int64_t(own_.size());
    own_.insert(own_.end(), r.rows.begin(), r.rows.end());
    captions.insert(captions.end(), r.captions.begin(), r.captions.end());
    content.add(r.content);
    for (const auto& line : r.broken) broken_.add(line);
    if (const auto more = r.broken_count - std::int64_t(r.broken.size()); more > 0) broken_.add(r.broken.back(), more);
    if (!r.cut.empty()) cut_.push_back(r.cut);
    r = {};
  }
  if (own_.size() >= TarRow::none) throw DataError(shards_[0].path, "and its list hold more than 4 billion samples");
  const std::string first = !cut_.empty() ? cut_[0] : broken_.count() ? broken_.first()[0] : "";
  if (own_.empty())
    throw DataError(shards_[0].path,
                    "no usable sample in " + std::to_string(shards_.size()) + " tar" +
                        (shards_.size() == 1 ? "" : "s") + (first.empty() ? "" : "; the first problem: " + first),
                    "a sample is name.jpg (png, webp) with name.txt or name.json");
  number_captions(own_, captions);
  identity_ = content.hex();
  rows_ = own_;
}

}  // namespace trireme

#include "data/image_text/open_pairs.h"

#include "comm/error.h"
#include "data/image_text/folder.h"
#include "data/image_text/picture_table.h"
#include "data/image_text/prepared.h"
#include "data/image_text/sources.h"
#include "data/image_text/table.h"
#include "data/image_text/tars.h"

#include <algorithm>
#include <filesystem>

namespace trireme {
namespace {

namespace fs = std::filesystem;

bool holds_tars(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    if (entry->path().extension() == ".tar") return true;
  return false;
}

std::unique_ptr<Pairs> open_tars(const std::string& file, const PairsSpec& spec) {
  TarsOptions options;
  options.index_key = spec.index_key;
  options.held_out = spec.held_out;
  options.broken_share = spec.broken_share;
  options.progress = spec.progress;
  options.whole = spec.whole;
  return std::make_unique<Tars>(file, options);
}

std::unique_ptr<Pairs> open_one(const std::string& file, const PairsSpec& spec) {
  std::error_code error;
  const std::string kind = fs::path(file).extension().string();
  const auto prepared = [&](const std::string& path) { return std::make_unique<ImageTextData>(path); };
  if (file.empty()) throw UsageError("data.file", "is empty", "name a prepared set, a file, tars or a folder");
  if (kind == ".h5" || kind == ".hdf5") return prepared(file);
  if (kind == ".csv" || kind == ".tsv")
    return std::make_unique<PictureTable>(table_data(file, spec.image_column, spec.caption_column), spec.held_out,
                                          spec.broken_share);
  if (kind == ".tar" || file.find("::") != file.npos || file.find('{') != file.npos) return open_tars(file, spec);
  const bool is_name = file.find('/') == file.npos;
  if (is_name && (fs::exists(prepared_path(file, spec.image_size), error) || !fs::is_directory(file, error)))
    return prepared(prepared_path(file, spec.image_size));
  if (!fs::exists(file, error))
    throw DataError(file, "no such file or folder", "name tars, a table (.csv), a prepared file (.h5) or a folder");
  if (!fs::is_directory(file, error)) return prepared(file);
  if (holds_tars(file)) return open_tars(file, spec);
  return std::make_unique<PictureTable>(folder_data(file), spec.held_out, spec.broken_share);
}

}  // namespace

std::unique_ptr<Pairs> open_pairs(const PairsSpec& spec) {
  if (spec.files.empty()) throw UsageError("data.files", "names no source", "name one");
  if (!spec.weights.empty() && spec.weights.size() != spec.files.size())
    throw UsageError(
        "data.weights",
        "has " + std::to_string(spec.weights.size()) + " numbers for " + std::to_string(spec.files.size()) + " sources",
        "give one for each");
  PairsSpec own = spec;
  if (!spec.eval_file.empty()) own.held_out = 0;
  if (spec.files.size() == 1 && spec.eval_file.empty()) return open_one(spec.files[0], own);
  std::vector<PairsSource> sources;
  for (std::size_t i = 0; i < spec.files.size(); ++i)
    sources.push_back({open_one(spec.files[i], own), spec.weights.empty() ? 1 : spec.weights[i], false});
  if (!spec.eval_file.empty()) sources.push_back({open_one(spec.eval_file, own), 1, true});
  return std::make_unique<JoinedPairs>(std::move(sources));
}

std::vector<std::int64_t> train_ids_of(const Pairs& pairs, const PairsSpec& spec, std::int64_t max_per_caption) {
  return keep_part(pairs.train_ids(max_per_caption), pairs, spec.part);
}

std::vector<std::int64_t> held_out_ids_of(const Pairs& pairs, const PairsSpec& spec) {
  if (spec.eval_part.empty()) return pairs.held_out_ids();
  auto ids = keep_part(pairs.train_ids(), pairs, spec.eval_part);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());  // each once, whatever its weight
  return ids;
}

}  // namespace trireme

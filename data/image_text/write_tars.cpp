#include "data/image_text/write_tars.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/tars.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <thread>

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::string padded(std::int64_t number, int digits) {
  const std::string text = std::to_string(number);
  return std::string(std::size_t(std::max(0, digits - int(text.size()))), '0') + text;
}

}  // namespace

void remove_tars(const std::string& folder, bool force) {
  std::error_code error;
  std::vector<fs::path> old;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator(); entry.increment(error))
    if (entry->path().extension() == ".tar") old.push_back(entry->path());
  if (!old.empty() && !force)
    throw DataError(folder, "holds tars already", "give another --out, or --force to replace them");
  for (const auto& file : old)
    if (!fs::remove(file, error) && error)
      throw DataError(file.string(), "cannot be removed: " + error.message(), "choose another --out");
}

void write_tars(const WriteTarsSpec& spec, BrokenSamples& left_out) {
  std::error_code failed;
  fs::create_directories(spec.out, failed);
  if (failed) throw DataError(spec.out, "cannot create the folder: " + failed.message(), "choose another --out");
  remove_tars(spec.out, spec.force);
  const std::int64_t shards = (spec.samples + spec.shard - 1) / spec.shard;
  std::atomic<std::int64_t> next{0}, written{0};
  std::mutex mutex;
  std::int64_t done = 0;
  std::exception_ptr error;
  const auto write_one = [&](std::int64_t s) {
    TarWriter tar((fs::path(spec.out) / (padded(s, spec.digits) + ".tar")).string());
    const std::int64_t first = s * spec.shard, last = std::min(spec.samples, first + spec.shard);
    for (std::int64_t i = first; i < last; ++i) try {
        spec.add(i, padded(i, 8), tar);
        ++written;
      } catch (const BrokenPicture& e) {
        left_out.add(e.what());
      }
    tar.close();
    std::lock_guard lock(mutex);
    done += last - first;
    if (spec.progress) spec.progress(std::size_t(done), std::size_t(spec.samples));
  };
  const auto work = [&] {
    try {
      for (std::int64_t s; (s = next++) < shards;) write_one(s);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = shards;
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int t = 1; t < spec.threads; ++t) pool.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  if (written == 0)
    throw DataError(spec.out, "no usable sample" + (left_out.count() ? "; " + left_out.first()[0] : ""));
}

std::int64_t pictures_to_tars(const PrepareSpec& pictures, WriteTarsSpec spec, BrokenSamples& left_out) {
  for (const auto& line : pictures.skipped) left_out.add(line);
  spec.samples = std::ssize(pictures.items);
  const std::int64_t before = left_out.count();
  spec.add = [&](std::int64_t i, const std::string& key, TarWriter& tar) {
    const PrepareItem& item = pictures.items[std::size_t(i)];
    std::vector<std::uint8_t> bytes;
    try {
      bytes = read_file(item.name, ImageLimits().max_file_bytes);
    } catch (const DataError& e) {
      throw BrokenPicture("", e.what());
    }
    std::string extension = fs::path(item.name).extension().string();
    for (char& c : extension) c = char(std::tolower(static_cast<unsigned char>(c)));
    tar.add(key + extension, bytes);
    tar.add(key + ".txt", item.caption);
  };
  write_tars(spec, left_out);
  return spec.samples - (left_out.count() - before);
}

PrepareSpec tars_data(const std::string& list) {
  TarsOptions options;
  options.broken_share = 1;
  const auto tars = std::make_shared<const Tars>(list, options);
  PrepareSpec spec;
  spec.name = "tars";
  spec.source = real_path(list);
  for (std::int64_t i = 0; i < tars->size(); ++i) {
    const auto cls = tars->class_id(i);
    spec.items.push_back({list + ": sample " + std::to_string(i),
                          tars->caption(i),
                          cls < 0 ? std::string() : tars->classes().at(std::size_t(cls)),
                          {}});
  }
  spec.templates = tars->templates();
  spec.skipped = tars->index().broken().first();
  if (const auto more = tars->index().broken().count() - std::ssize(spec.skipped); more > 0)
    spec.notes.push_back("and " + std::to_string(more) + " more broken samples");
  spec.decode = [tars](std::size_t i) { return tars->picture(std::int64_t(i)).pixels; };
  return spec;
}

}  // namespace trireme

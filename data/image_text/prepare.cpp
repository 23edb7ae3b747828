#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/caption_text.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/prepared.h"
#include "data/text/text.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <unordered_set>

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t block = 256;  // images decoded, and written, at a time

std::size_t row_bytes(const PrepareSpec& spec) { return std::size_t(3) * spec.size * spec.size; }

// Rows of pixels that wait for their final count, in an unnamed file beside the output: the set may exceed
// memory.
class Spool {
 public:
  Spool(const std::string& folder, std::size_t row) : row_(row), where_(folder) {
    std::string name = folder + "/.trireme-spool-XXXXXX";
    fd_ = mkstemp(name.data());
    if (fd_ < 0) fail("cannot create a temporary file");
    unlink(name.c_str());
  }
  ~Spool() { close(fd_); }
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  void append(const std::uint8_t* row) {
    for (std::size_t done = 0; done < row_;) {
      const ssize_t n = write(fd_, row + done, row_ - done);
      if (n < 0 && errno != EINTR) fail("cannot write a temporary file");
      if (n > 0) done += std::size_t(n);
    }
  }
  void read(std::int64_t first, std::int64_t count, std::uint8_t* out) const {
    const std::size_t total = std::size_t(count) * row_;
    for (std::size_t done = 0; done < total;) {
      const ssize_t n = pread(fd_, out + done, total - done, off_t(std::size_t(first) * row_ + done));
      if (n == 0 || (n < 0 && errno != EINTR)) fail("cannot read a temporary file");
      if (n > 0) done += std::size_t(n);
    }
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw DataError(where_, std::string(what) + ": " + std::strerror(errno),
                    "free space there, or choose another --out");
  }
  std::size_t row_;
  std::string where_;
  int fd_ = -1;
};

struct Decoded {
  std::vector<std::uint8_t> planes;
  ContentHash key;  // of the planes
  std::string problem;
};

// Items [first, last) on `threads` threads; only DataError makes an item skipped, everything else is passed
// on.
std::vector<Decoded> decode_block(const PrepareSpec& spec, std::size_t first, std::size_t last) {
  std::vector<Decoded> out(last - first);
  std::atomic<std::size_t> next{first};
  std::vector<std::exception_ptr> errors(std::max(1, spec.threads));
  auto work = [&](std::exception_ptr& error) {
    try {
      for (std::size_t i; (i = next++) < last;) try {
          Decoded& d = out[i - first];
          d.planes = fit_square(spec.decode(i), spec.size);
          d.key.add(d.planes.data(), d.planes.size());
        } catch (const DataError& e) {
          out[i - first].problem = e.what();
        }
    } catch (...) {
      error = std::current_exception();
      next = last;
    }
  };
  {
    std::vector<std::jthread> pool;
    for (std::size_t t = 1; t < errors.size(); ++t) pool.emplace_back(work, std::ref(errors[t]));
    work(errors[0]);
  }
  for (auto& e : errors)
    if (e) std::rethrow_exception(e);
  return out;
}

template <class T>
void put(Hdf5File& file, const std::string& name, DType dtype, const std::vector<T>& values) {
  const std::int64_t n = std::int64_t(values.size());
  file.create_array(name, dtype, std::span(&n, 1));
  if (n > 0) file.write_rows(name, 0, n, values.data());
}

std::int64_t ids_of(const std::vector<std::string>& values, std::vector<std::int64_t>& ids,
                    std::vector<std::string>& names) {
  std::map<std::string, std::int64_t> known;
  for (const auto& v : values) known.emplace(v, 0);
  for (auto& [name, id] : known) {
    id = std::int64_t(names.size());
    names.push_back(name);
  }
  for (const auto& v : values) ids.push_back(known[v]);
  return std::int64_t(names.size());
}

struct Kept {
  std::vector<std::string> captions, categories;
  std::vector<std::optional<bool>> held_out;
  ContentHash pixels;  // of the rows' hashes, in order
};

// Decodes everything; pixels go to the spool, what is left out to the report.
Kept decode_all(const PrepareSpec& spec, Spool& spool, PrepareReport& report) {
  const std::size_t total = spec.items.size();
  Kept kept;
  std::unordered_set<std::string> seen;
  for (std::size_t first = 0; first < total; first += block) {
    const std::size_t last = std::min(total, first + block);
    auto decoded = decode_block(spec, first, last);
    for (std::size_t i = first; i < last; ++i) {
      Decoded& d = decoded[i - first];
      if (!d.problem.empty()) {
        report.skipped.push_back(std::move(d.problem));
        continue;
      }
      if (!seen.insert(d.key.hex()).second) {
        ++report.duplicates;
        continue;
      }
      spool.append(d.planes.data());
      kept.pixels.add(d.key);
      kept.captions.push_back(spec.items[i].caption);
      kept.categories.push_back(spec.items[i].category);
      kept.held_out.push_back(spec.items[i].held_out);
    }
    if (spec.progress) spec.progress(last, total);
  }
  report.images = std::int64_t(kept.captions.size());
  if (report.images == 0) {
    const std::string why = report.skipped.empty() ? "" : "; the first problem: " + report.skipped.front();
    throw DataError(spec.source, "no usable image among " + std::to_string(total + spec.skipped.size()) + why,
                    "check the folder");
  }
  return kept;
}

// What the file holds besides pixels.
struct Index {
  std::vector<std::int64_t> caption_ids, class_ids, offsets{0};
  std::vector<std::string> class_names;
  std::vector<std::uint8_t> held_out, caption_bytes;
};

Index make_index(const PrepareSpec& spec, const Kept& kept, PrepareReport& report) {
  const std::int64_t n = report.images;
  Index index;
  std::vector<std::string> caption_names;
  report.captions = ids_of(kept.captions, index.caption_ids, caption_names);
  report.classes = ids_of(kept.categories, index.class_ids, index.class_names);
  std::vector<std::int64_t> uses(caption_names.size());
  for (auto id : index.caption_ids) ++uses[id];
  std::vector<std::uint8_t> held_names(caption_names.size());
  for (std::size_t c = 0; c < held_names.size(); ++c)
    held_names[c] = caption_held_out(caption_names[c]) && uses[c] <= std::max<std::int64_t>(1, n / 100);
  for (std::int64_t i = 0; i < n; ++i)
    if (kept.held_out[i]) held_names[index.caption_ids[i]] = *kept.held_out[i];
  for (const auto held : held_names) report.held_out_captions += held;
  for (std::int64_t i = 0; i < n; ++i) {
    index.held_out.push_back(held_names[index.caption_ids[i]]);
    report.held_out_images += index.held_out.back();
    index.caption_bytes.insert(index.caption_bytes.end(), kept.captions[i].begin(), kept.captions[i].end());
    index.offsets.push_back(std::int64_t(index.caption_bytes.size()));
  }
  if (index.caption_bytes.empty()) throw DataError(spec.source, "every caption is empty", "give the images captions");
  return index;
}

// Names of files need not be UTF-8; JSON is.
std::string as_json_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void write_file(const std::string& path, const PrepareSpec& spec, const Spool& spool, const Index& index,
                const nlohmann::json& meta) {
  const std::int64_t n = std::int64_t(index.held_out.size());
  const std::size_t row = row_bytes(spec);
  Hdf5File file = Hdf5File::create(path);
  const std::int64_t shape[] = {n, 3, spec.size, spec.size};
  file.create_array("images", DType::u8, shape, std::max<std::int64_t>(1, (1 << 18) / std::int64_t(row)));
  std::vector<std::uint8_t> rows(block * row);
  for (std::int64_t i = 0; i < n; i += std::int64_t(block)) {
    const std::int64_t count = std::min<std::int64_t>(block, n - i);
    spool.read(i, count, rows.data());
    file.write_rows("images", i, count, rows.data());
  }
  put(file, "caption_bytes", DType::u8, index.caption_bytes);
  put(file, "caption_offsets", DType::i64, index.offsets);
  put(file, "caption_id", DType::i64, index.caption_ids);
  put(file, "class_id", DType::i64, index.class_ids);
  put(file, "held_out", DType::u8, index.held_out);
  file.write_text("classes", as_json_text(index.class_names));
  file.write_text("meta", as_json_text(meta));
  file.close();
}

nlohmann::json meta_of(const PrepareSpec& spec, const PrepareReport& report, const ContentHash& pixels) {
  nlohmann::json meta = {{"format_version", 1},
                         {"name", spec.name},
                         {"source", utf8_or_latin1(spec.source)},
                         {"image_size", spec.size},
                         {"images", report.images},
                         {"captions", report.captions},
                         {"classes", report.classes},
                         {"held_out_images", report.held_out_images},
                         {"held_out_captions", report.held_out_captions},
                         {"duplicates", report.duplicates},
                         {"skipped", report.skipped.size()},
                         {"pixels_hash", pixels.hex()}};
  if (!spec.templates.empty()) meta["templates"] = spec.templates;
  return meta;
}

}  // namespace

bool caption_held_out(const std::string& caption) { return caption_draw(caption) < held_out_draw(0.1); }

PrepareReport prepare_images(const PrepareSpec& spec) {
  const auto start = std::chrono::steady_clock::now();
  const fs::path target = fs::absolute(spec.out);
  const std::string folder = target.parent_path().string();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder, "cannot create the folder: " + error.message(), "choose another --out");

  PrepareReport report;
  report.skipped = spec.skipped;
  Spool spool(folder, row_bytes(spec));
  const Kept kept = decode_all(spec, spool, report);
  const Index index = make_index(spec, kept, report);
  write_whole(spec.out, [&](const std::string& name) {
    write_file(name, spec, spool, index, meta_of(spec, report, kept.pixels));
  });
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace trireme

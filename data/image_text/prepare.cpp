#include "comm/error.h"
#include "data/image_text/prepared.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>
#include <unordered_set>

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::uint64_t hash_bytes(const void* data, std::size_t n, std::uint64_t h) {
  const auto* p = static_cast<const std::uint8_t*>(data);
  for (std::size_t i = 0; i < n; ++i) h = (h ^ p[i]) * 0x100000001b3ull;
  h ^= h >> 33, h *= 0xff51afd7ed558ccdull, h ^= h >> 33;
  return h;
}

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
          out[i - first].planes = fit_square(spec.decode(i), spec.size);
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

void sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  const bool ok = fd >= 0 && fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!ok) throw DataError(path, std::string("cannot be flushed to disk: ") + std::strerror(error), "check the disk");
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

}  // namespace

bool caption_held_out(const std::string& caption) {
  return hash_bytes(caption.data(), caption.size(), 0xcbf29ce484222325ull) % 1000 < 100;
}

PrepareReport prepare_images(const PrepareSpec& spec) {
  const auto start = std::chrono::steady_clock::now();
  const fs::path target = fs::absolute(spec.out);
  const std::string folder = target.parent_path().string();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder, "cannot create the folder: " + error.message(), "choose another --out");

  PrepareReport report;
  report.skipped = spec.skipped;
  const std::size_t row = std::size_t(3) * spec.size * spec.size, block = 256, total = spec.items.size();
  Spool spool(folder, row);
  std::unordered_set<std::string> seen;
  std::vector<std::string> captions, categories;
  for (std::size_t first = 0; first < total; first += block) {
    const std::size_t last = std::min(total, first + block);
    auto decoded = decode_block(spec, first, last);
    for (std::size_t i = first; i < last; ++i) {
      Decoded& d = decoded[i - first];
      if (!d.problem.empty()) {
        report.skipped.push_back(std::move(d.problem));
        continue;
      }
      const std::uint64_t key[2] = {hash_bytes(d.planes.data(), row, 1), hash_bytes(d.planes.data(), row, 2)};
      if (!seen.insert(std::string(reinterpret_cast<const char*>(key), sizeof key)).second) {
        ++report.duplicates;
        continue;
      }
      spool.append(d.planes.data());
      captions.push_back(spec.items[i].caption);
      categories.push_back(spec.items[i].category);
    }
    if (spec.progress) spec.progress(last, total);
  }
  const std::int64_t n = report.images = std::int64_t(captions.size());
  if (n == 0) {
    const std::string why = report.skipped.empty() ? "" : "; the first problem: " + report.skipped.front();
    throw DataError(spec.source, "no usable image among " + std::to_string(total) + why, "check the folder");
  }

  std::vector<std::int64_t> caption_ids, class_ids, offsets{0};
  std::vector<std::string> caption_names, class_names;
  report.captions = ids_of(captions, caption_ids, caption_names);
  report.classes = ids_of(categories, class_ids, class_names);
  std::vector<std::int64_t> uses(caption_names.size());
  for (auto id : caption_ids) ++uses[id];
  std::vector<std::uint8_t> held_names(caption_names.size()), held(n), bytes;
  for (std::size_t c = 0; c < held_names.size(); ++c)
    report.held_out_captions += held_names[c] =
        caption_held_out(caption_names[c]) && uses[c] <= std::max<std::int64_t>(1, n / 100);
  for (std::int64_t i = 0; i < n; ++i) {
    report.held_out_images += held[i] = held_names[caption_ids[i]];
    bytes.insert(bytes.end(), captions[i].begin(), captions[i].end());
    offsets.push_back(std::int64_t(bytes.size()));
  }
  if (bytes.empty()) throw DataError(spec.source, "every caption is empty", "give the images captions");

  const std::string temporary = target.string() + ".tmp-" + std::to_string(getpid());
  try {
    Hdf5File file = Hdf5File::create(temporary);
    const std::int64_t shape[] = {n, 3, spec.size, spec.size};
    file.create_array("images", DType::u8, shape, std::max<std::int64_t>(1, (1 << 18) / std::int64_t(row)));
    std::vector<std::uint8_t> rows(block * row);
    for (std::int64_t i = 0; i < n; i += std::int64_t(block)) {
      const std::int64_t count = std::min<std::int64_t>(block, n - i);
      spool.read(i, count, rows.data());
      file.write_rows("images", i, count, rows.data());
    }
    put(file, "caption_bytes", DType::u8, bytes);
    put(file, "caption_offsets", DType::i64, offsets);
    put(file, "caption_id", DType::i64, caption_ids);
    put(file, "class_id", DType::i64, class_ids);
    put(file, "held_out", DType::u8, held);
    file.write_text("classes", nlohmann::json(class_names).dump());
    const nlohmann::json meta = {{"format_version", 1},
                                 {"name", spec.name},
                                 {"source", spec.source},
                                 {"image_size", spec.size},
                                 {"images", n},
                                 {"captions", report.captions},
                                 {"classes", report.classes},
                                 {"held_out_images", report.held_out_images},
                                 {"held_out_captions", report.held_out_captions},
                                 {"duplicates", report.duplicates},
                                 {"skipped", report.skipped.size()}};
    file.write_text("meta", meta.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    file.close();
    sync_path(temporary);
    fs::rename(temporary, target);
    sync_path(folder);
  } catch (const fs::filesystem_error& e) {
    fs::remove(temporary, error);
    throw DataError(spec.out, std::string("cannot be put in place: ") + e.code().message(),
                    "check the folder's permissions");
  } catch (...) {
    fs::remove(temporary, error);
    throw;
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace trireme

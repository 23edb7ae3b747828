#include "data/tables/criteo.h"

#include "comm/error.h"
#include "data/rng.h"
#include "data/tables/npz.h"
#include "data/workers.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <memory>
#include <optional>
#include <unordered_map>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

// A file in memory, as its pages are asked for.
class Mapped {
 public:
  explicit Mapped(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat s {};
    const bool there = fd >= 0 && fstat(fd, &s) == 0;
    if (there && S_ISREG(s.st_mode) && s.st_size > 0) {
      size_ = std::size_t(s.st_size);
      data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    }
    const int error = errno;
    if (fd >= 0) ::close(fd);
    if (!there) throw DataError(path, std::string("cannot be read: ") + std::strerror(error), "correct --from");
    if (!data_ || data_ == MAP_FAILED)
      throw DataError(path, "is empty or no plain file", "name a file of tab-separated lines, unpacked");
    madvise(data_, size_, MADV_SEQUENTIAL);
  }
  ~Mapped() {
    if (data_ && data_ != MAP_FAILED) munmap(data_, size_);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  std::string_view text() const { return {static_cast<const char*>(data_), size_}; }
  // What came before is not needed any more.
  void forget(std::size_t until) const { madvise(data_, until & ~std::size_t(0xfffff), MADV_DONTNEED); }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

bool has_records(const std::string& file) { return file.ends_with(".bin"); }

// Lines or records of a whole file.
std::int64_t lines_in(std::string_view text, const std::string& file) {
  if (has_records(file)) {
    if (text.size() % criteo_record)
      throw DataError(
          file,
          "holds " + std::to_string(text.size()) + " bytes, which are no records of " + std::to_string(criteo_record),
          "name a file of i32: a label, 13 integers and 26 categories, again and again");
    return std::int64_t(text.size() / criteo_record);
  }
  const auto n = std::int64_t(std::count(text.begin(), text.end(), '\n'));
  return n + (!text.empty() && text.back() != '\n');
}

// Words to ids, by first appearance.
struct Ids {
  std::unordered_map<std::uint32_t, std::int32_t> of_word;
  std::vector<std::int64_t> words, counts;

  std::int32_t id(std::uint32_t word) {
    const auto [at, fresh] = of_word.emplace(word, std::int32_t(words.size()));
    if (fresh) words.push_back(word), counts.push_back(0);
    ++counts[std::size_t(at->second)];
    return at->second;
  }
};

class Preparation {
 public:
  explicit Preparation(const CriteoSpec& spec) : spec_(spec), workers_(spec.threads), ids_(criteo_tables) {}

  CriteoReport run() {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::unique_ptr<Mapped>> days;
    std::int64_t most = 0;
    for (const auto& f : spec_.files) {
      days.push_back(std::make_unique<Mapped>(f));
      total_ += std::int64_t(days.back()->text().size());
      most += lines_in(days.back()->text(), f);
      if (has_records(f) != has_records(spec_.files[0]))
        throw UsageError(f, "records of a .bin and lines of text do not go together", "prepare each by itself");
    }
    writer_.emplace(spec_.out, most, criteo_dense, criteo_tables, false);
    std::vector<std::int64_t> ends;  // of days, in samples
    for (std::size_t d = 0; d < days.size(); ++d) {
      day(*days[d], spec_.files[d]);
      ends.push_back(writer_->samples());
    }
    report_.info = finish(ends);
    report_.bytes = total_;
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(report_);
  }

 private:
  // Pieces of whole lines, one for each thread; parsed side by side, given their ids table by table, written in order.
  void day(const Mapped& file, const std::string& name) {
    const std::string_view text = file.text();
    constexpr std::size_t piece = std::size_t{8} << 20;
    const auto n = std::size_t(workers_.threads());
    std::vector<CriteoBlock> blocks(n);
    std::vector<std::string_view> pieces;
    std::vector<double> parsing(n);
    std::int64_t line = 1;
    const bool records = has_records(name);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t first = at;
      for (pieces.clear(); pieces.size() < n && at < text.size();) {
        std::size_t end = std::min(text.size(), at + (records ? piece / criteo_record * criteo_record : piece));
        if (!records && end < text.size()) end = std::min(text.find('\n', end - 1), text.size() - 1) + 1;
        pieces.push_back(text.substr(at, end - at));
        at = end;
      }
      workers_.each(std::int64_t(pieces.size()), [&](std::int64_t k) {
        const double begin = thread_seconds();
        const auto parse = records ? parse_criteo_records : parse_criteo;
        parse(pieces[std::size_t(k)], std::uint32_t(spec_.max_ind_range), blocks[std::size_t(k)]);
        parsing[std::size_t(k)] += thread_seconds() - begin;
      });
      for (std::size_t k = 0; k < pieces.size(); ++k) {
        judge(blocks[k], name, line);
        drop(blocks[k], name);
      }
      number(blocks, pieces.size());
      for (std::size_t k = 0; k < pieces.size(); ++k)
        writer_->add(std::int64_t(blocks[k].label.size()), blocks[k].dense.data(),
                     reinterpret_cast<const std::int32_t*>(blocks[k].words.data()), blocks[k].label.data());
      done_ += std::int64_t(at - first);
      if (spec_.progress) spec_.progress(done_, total_);
      file.forget(at);
    }
    for (const double s : parsing) report_.parsing += s;
  }

  void judge(const CriteoBlock& b, const std::string& name, std::int64_t& line) {
    for (const auto& bad : b.bad)
      if (report_.bad.size() < 10) report_.bad.push_back(name + ":" + std::to_string(line + bad.line) + ": " + bad.why);
    line += b.lines;
    report_.lines += b.lines, report_.bad_lines += b.bad_lines;
    // The first few thousand lines may be worse than all of them: finish() judges those.
    refuse_above(std::max(spec_.broken_share * double(report_.lines), 10 * spec_.broken_share * 1000), " so far");
  }

  void refuse_above(double allowed, const char* when) const {
    if (double(report_.bad_lines) <= allowed) return;
    throw DataError(
        report_.bad.front(),
        std::to_string(report_.bad_lines) + " of " + std::to_string(report_.lines) + " lines" + when + " are malformed",
        "lines have a label, 13 integers and 26 hexadecimal words between tabs (records of a .bin 26 categories, 0 or "
        "more); "
        "--broken-share allows more");
  }

  void drop(CriteoBlock& b, const std::string& name) {
    const auto n = b.label.size();
    if (spec_.drop_negatives > 0) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < n; ++i) {
        Rng rng(spec_.seed, "criteo/drop", std::uint64_t(sample_ + std::int64_t(i)));
        if (!b.label[i] && rng.uniform() < spec_.drop_negatives) continue;
        b.label[kept] = b.label[i];
        std::copy_n(b.dense.begin() + std::ptrdiff_t(i * criteo_dense), criteo_dense,
                    b.dense.begin() + std::ptrdiff_t(kept * criteo_dense));
        std::copy_n(b.words.begin() + std::ptrdiff_t(i * criteo_tables), criteo_tables,
                    b.words.begin() + std::ptrdiff_t(kept * criteo_tables));
        ++kept;
      }
      report_.dropped += std::int64_t(n - kept);
      b.label.resize(kept), b.dense.resize(kept * criteo_dense), b.words.resize(kept * criteo_tables);
    }
    sample_ += std::int64_t(n);
  }

  void number(std::vector<CriteoBlock>& blocks, std::size_t count) {
    workers_.each(criteo_tables, [&](std::int64_t t) {
      Ids& ids = ids_[std::size_t(t)];
      for (std::size_t k = 0; k < count; ++k) {
        std::vector<std::uint32_t>& words = blocks[k].words;
        for (std::size_t i = std::size_t(t); i < words.size(); i += criteo_tables)
          words[i] = std::uint32_t(ids.id(words[i]));
      }
    });
  }

  TableFileInfo finish(const std::vector<std::int64_t>& ends) {
    const std::int64_t n = writer_->samples();
    refuse_above(spec_.broken_share * double(report_.lines), "");
    if (n == 0) throw DataError(spec_.files.front(), "has no sample", "name a file of tab-separated lines");
    TableFileInfo info;
    info.name = "criteo", info.source = spec_.source;
    info.samples = n;
    for (int k = 1; k <= criteo_dense; ++k) info.dense.push_back("I" + std::to_string(k));
    for (int t = 0; t < criteo_tables; ++t) {
      const std::string name = "C" + std::to_string(t + 1);
      info.tables.push_back({name, std::max<std::int64_t>(1, std::int64_t(ids_[std::size_t(t)].words.size()))});
      writer_->values(name, ids_[std::size_t(t)].words);
      writer_->counts(name, ids_[std::size_t(t)].counts);
    }
    if (ends.size() == 1) {
      seven_days(info);
    } else {
      const std::int64_t last = ends[ends.size() - 2], middle = last + (n - last + 1) / 2;
      info.train = {0, last}, info.test = {last, middle}, info.validation = {middle, n};
    }
    writer_->finish(info);
    return info;
  }

  const CriteoSpec& spec_;
  Workers workers_;
  std::vector<Ids> ids_;
  std::optional<TableFileWriter> writer_;
  CriteoReport report_;
  std::int64_t done_ = 0, total_ = 0, sample_ = 0;
};

}  // namespace

CriteoReport prepare_criteo(const CriteoSpec& spec) { return Preparation(spec).run(); }

}  // namespace trireme

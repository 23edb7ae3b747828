#include "framework/metrics/trace.h"

#include "comm/error.h"
#include "framework/io/file_io.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme {
namespace {

constexpr std::size_t max_spans = 2'000'000;
constexpr std::array track_names = {"step", "communication", "data", "device"};
constexpr int lanes_a_track = 100;

struct SpanRecord {
  std::int64_t begin, end, bytes;
  std::uint32_t name;
  Trace::Track track;
};

struct State {
  std::mutex mutex;
  int rank = 0;
  std::int64_t steady_origin = 0, system_origin = 0;  // the same instant; clocks of nodes differ
  std::map<std::string, std::uint32_t, std::less<>> ids;
  std::vector<std::string> names;
  std::vector<SpanRecord> spans;
  std::int64_t dropped = 0;
};

State& state() {
  static auto* s = new State;  // spans may end while statics are destroyed
  return *s;
}

std::string json_text(const std::string& s) {
  return nlohmann::json(s).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::string microseconds(std::int64_t ns) {
  std::array<char, 40> text;
  std::snprintf(text.data(), text.size(), "%lld.%03d", static_cast<long long>(ns / 1000), int(ns % 1000));
  return text.data();
}

std::string metadata(int rank, int tid, const char* kind, const std::string& args) {
  return "{\"ph\":\"M\",\"pid\":" + std::to_string(rank) + ",\"tid\":" + std::to_string(tid) + ",\"name\":\"" + kind +
         "\",\"args\":{" + args + "}}";
}

// Viewers want the spans of one row nested. Spans that overlap otherwise (several collectives at once) get
// rows of their own: a span goes to the first row where nothing open would be cut.
class Lanes {
 public:
  int place(std::int64_t begin, std::int64_t end) {
    for (std::size_t lane = 0;; ++lane) {
      if (lane == open_.size()) open_.emplace_back();
      auto& stack = open_[lane];
      while (!stack.empty() && stack.back() <= begin) stack.pop_back();
      if (!stack.empty() && stack.back() < end && lane + 1 < lanes_a_track) continue;
      stack.push_back(end);
      return int(lane);
    }
  }
  std::size_t count() const { return open_.size(); }

 private:
  std::vector<std::vector<std::int64_t>> open_;  // ends of the open spans of a row, outermost first
};

std::string part_name(const std::string& file, int rank) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), ".rank_%05d", rank);
  return file + text.data();
}

// First line: the instant of time 0. Then one event a line.
void write_part(State& s, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << s.system_origin << "\n";
  std::array<char, 256> host = {};
  gethostname(host.data(), host.size() - 1);
  const std::string rank = std::to_string(s.rank);
  out << metadata(s.rank, 0, "process_name", "\"name\":" + json_text("rank " + rank + " (" + host.data() + ")"))
      << "\n";
  out << metadata(s.rank, 0, "process_sort_index", "\"sort_index\":" + rank) << "\n";
  if (s.dropped)
    out << metadata(s.rank, 0, "process_labels", "\"labels\":\"" + std::to_string(s.dropped) + " later spans dropped\"")
        << "\n";
  std::sort(s.spans.begin(), s.spans.end(), [](const SpanRecord& a, const SpanRecord& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  std::array<Lanes, track_names.size()> lanes;
  for (const auto& span : s.spans) {
    const auto track = std::size_t(span.track);
    const int tid = int(track + 1) * lanes_a_track + lanes[track].place(span.begin, span.end);
    out << "{\"ph\":\"X\",\"pid\":" << rank << ",\"tid\":" << tid << ",\"name\":" << json_text(s.names[span.name])
        << ",\"ts\":" << microseconds(span.begin - s.steady_origin)
        << ",\"dur\":" << microseconds(span.end - span.begin);
    if (span.bytes >= 0) out << ",\"args\":{\"bytes\":" << span.bytes << "}";
    out << "}\n";
  }
  for (std::size_t t = 0; t < lanes.size(); ++t)
    for (std::size_t lane = 0; lane < lanes[t].count(); ++lane) {
      const int tid = int(t + 1) * lanes_a_track + int(lane);
      const std::string name = track_names[t] + (lane ? " " + std::to_string(lane + 1) : std::string());
      out << metadata(s.rank, tid, "thread_name", "\"name\":\"" + name + "\"") << "\n";
      out << metadata(s.rank, tid, "thread_sort_index", "\"sort_index\":" + std::to_string(tid)) << "\n";
    }
  out.close();
  if (!out) throw DataError(path, "cannot write the trace");
}

std::int64_t origin_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::int64_t origin = 0;
  if (!(in >> origin)) throw DataError(path, "not a part of a trace");
  return origin;
}

// Moves "ts" of one event by `offset_ns`; the rest of the line stays as it is.
void shift(std::string& line, std::int64_t offset_ns) {
  constexpr std::string_view key = ",\"ts\":";
  const auto at = line.rfind(key);  // the last: a name may hold the same text
  if (offset_ns == 0 || at == line.npos || !line.starts_with("{\"ph\":\"X\"")) return;
  const auto begin = at + key.size();
  const auto end = line.find(',', begin);
  const auto dot = line.find('.', begin);
  const auto ns = std::stoll(line.substr(begin, dot - begin)) * 1000 + std::stoll(line.substr(dot + 1, end - dot - 1));
  line.replace(begin, end - begin, microseconds(ns + offset_ns));
}

void merge(const std::string& file) {
  const std::filesystem::path path(file);
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const std::string prefix = path.filename().string() + ".rank_";
  std::vector<std::string> parts;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(prefix)) parts.push_back(entry.path().string());
  std::sort(parts.begin(), parts.end());
  std::int64_t first = std::numeric_limits<std::int64_t>::max();
  for (const auto& part : parts) first = std::min(first, origin_of(part));

  const std::string temporary = file + ".tmp";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  const char* gap = "\n";
  for (const auto& part : parts) {
    std::ifstream in(part, std::ios::binary);
    std::string line;
    std::getline(in, line);
    const std::int64_t offset = std::stoll(line) - first;
    while (std::getline(in, line)) {
      shift(line, offset);
      out << gap << line;
      gap = ",\n";
    }
  }
  out << "\n]}\n";
  out.close();
  if (!out) throw DataError(file, "cannot write the trace");
  rename_path(system_io(), temporary, file);
  for (const auto& part : parts) system_io().unlink(part);
}

}  // namespace

std::atomic<bool> Trace::on_ = false;

std::int64_t Trace::now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Trace::enable(int rank) {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  s.rank = rank;
  s.spans.clear();
  s.dropped = 0;
  s.steady_origin = now_ns();
  s.system_origin =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  on_ = true;
}

void Trace::add(Track track, std::string_view name, std::int64_t begin_ns, std::int64_t end_ns, std::int64_t bytes) {
  if (!enabled()) return;
  auto& s = state();
  std::lock_guard lock(s.mutex);
  if (s.spans.size() >= max_spans) {
    ++s.dropped;
    return;
  }
  auto id = s.ids.find(name);
  if (id == s.ids.end()) {
    id = s.ids.emplace(std::string(name), std::uint32_t(s.names.size())).first;
    s.names.emplace_back(name);
  }
  // A span that began before enable() starts with the trace.
  const auto begin = std::max(begin_ns, s.steady_origin);
  s.spans.push_back({begin, std::max(begin, end_ns), bytes, id->second, track});
}

void Trace::write(const std::string& file) {
  if (!enabled()) return;
  auto& s = state();
  std::lock_guard lock(s.mutex);
  write_part(s, part_name(file, s.rank));
  if (s.rank == 0) merge(file);
}

}  // namespace trireme

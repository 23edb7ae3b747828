#include "framework/metrics/tensorboard.h"

#include "comm/crc32c.h"
#include "comm/error.h"

#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <unistd.h>

namespace trireme {
namespace {

template <class T>
void put(std::string& s, T v) {
  static_assert(std::endian::native == std::endian::little);
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}

void put_varint(std::string& s, std::uint64_t v) {
  for (; v >= 0x80; v >>= 7) s += char(v | 0x80);
  s += char(v);
}

enum WireType : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
void put_tag(std::string& s, int field, WireType type) { put_varint(s, std::uint64_t(field) << 3 | type); }

void put_bytes(std::string& s, int field, const std::string& value) {
  put_tag(s, field, bytes);
  put_varint(s, value.size());
  s += value;
}

// A CRC of data that holds its own CRC is weak, so the format rotates and shifts it.
std::uint32_t masked_crc(const std::string& s) {
  const std::uint32_t c = crc32c(s.data(), s.size());
  return std::rotr(c, 15) + 0xa282ead8u;
}

std::string frame(const std::string& data) {
  std::string s;
  put(s, std::uint64_t(data.size()));
  put(s, masked_crc(s));
  s += data;
  put(s, masked_crc(data));
  return s;
}

std::string event_head(double wall_time) {
  std::string s;
  put_tag(s, 1, fixed64);  // Event.wall_time
  put(s, wall_time);
  return s;
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string host_name() {
  std::array<char, 256> name = {};
  if (gethostname(name.data(), name.size() - 1) != 0 || !name[0]) return "host";
  for (char& c : name)
    if (c == '/') c = '_';
  return name.data();
}

constexpr std::string_view name_begin = "events.out.tfevents.";

// Of an event as event_head and what follows it write it; 0 where it has none.
std::uint64_t step_in(std::string_view event) {
  std::uint64_t step = 0;
  if (event.size() < 10 || event[0] != (1 << 3 | fixed64) || event[9] != (2 << 3 | varint)) return 0;
  for (std::size_t i = 10, shift = 0; i < event.size() && shift < 64; ++i, shift += 7) {
    step |= std::uint64_t(event[i] & 0x7f) << shift;
    if (!(event[i] & 0x80)) break;
  }
  return step;
}

// Bytes of the file up to its first event after `last_step`, or up to a record that was torn.
std::uint64_t good_bytes(const std::filesystem::path& file, std::int64_t last_step) {
  constexpr std::uint64_t longest = 64 << 20;
  std::ifstream in(file, std::ios::binary);
  std::uint64_t good = 0;
  for (std::string head(12, '\0'), data; in.read(head.data(), std::streamsize(head.size()));) {
    std::uint64_t size = 0;
    std::memcpy(&size, head.data(), sizeof size);
    if (size > longest) break;
    data.resize(size + 4);
    if (!in.read(data.data(), std::streamsize(data.size()))) break;
    data.resize(size);
    if (step_in(data) > std::uint64_t(last_step)) break;
    good += head.size() + size + 4;
  }
  return good;
}

// Are there earlier files?
bool cut_events_after(const std::string& folder, std::int64_t last_step) {
  namespace fs = std::filesystem;
  bool any = false;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.path().filename().string().starts_with(name_begin) || !entry.is_regular_file()) continue;
    any = true;
    const auto good = good_bytes(entry.path(), last_step);
    std::error_code failed;
    if (good < entry.file_size()) fs::resize_file(entry.path(), good, failed);
    if (failed)
      throw DataError(entry.path().string(), "cannot be cut: " + failed.message(),
                      "make it writable, or remove the file");
  }
  return any;
}

AppendFile create(const std::string& folder) {
  const std::string stem =
      folder + "/" + std::string(name_begin) + std::to_string(std::int64_t(now())) + "." + host_name();
  // A resume within the second must not write into the earlier file.
  for (int n = 0;; ++n) {
    const std::string path = n ? stem + "." + std::to_string(n) : stem;
    if (!std::filesystem::exists(path)) return AppendFile(path, O_EXCL);
  }
}

}  // namespace

std::string event_record(double wall_time, std::int64_t step, const std::map<std::string, double>& values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    std::string v;
    put_bytes(v, 1, tag);    // Summary.Value.tag
    put_tag(v, 2, fixed32);  // Summary.Value.simple_value
    put(v, float(value));
    put_bytes(summary, 1, v);  // Summary.value
  }
  std::string event = event_head(wall_time);
  put_tag(event, 2, varint);  // Event.step
  put_varint(event, std::uint64_t(step));
  put_bytes(event, 5, summary);  // Event.summary
  return frame(event);
}

EventFile::EventFile(const std::string& folder, std::int64_t last_step)
    : EventFile(folder, last_step, cut_events_after(folder, last_step)) {}

EventFile::EventFile(const std::string& folder, std::int64_t last_step, bool resumed) : file_(create(folder)) {
  std::string event = event_head(now());
  put_bytes(event, 3, "brain.Event:2");  // Event.file_version
  file_.write(frame(event));
  if (!resumed) return;
  event = event_head(now());
  put_tag(event, 2, varint);  // Event.step: from here on, what was read before is void
  put_varint(event, std::uint64_t(last_step) + 1);
  std::string start;
  put_tag(start, 1, varint);   // SessionLog.status
  put_varint(start, 1);        // START
  put_bytes(event, 7, start);  // Event.session_log
  file_.write(frame(event));
}

void EventFile::scalars(std::int64_t step, const std::map<std::string, double>& values) {
  if (!values.empty()) file_.write(event_record(now(), step, values));
}

}  // namespace trireme

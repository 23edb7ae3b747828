#include "framework/io/manifest.h"

#include "comm/crc32c.h"
#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr std::size_t max_text = std::size_t{256} << 20;
constexpr int max_depth = 32;
constexpr std::array kinds = {"replicated", "rows", "per_rank"};

std::string hex(std::uint32_t v) {
  std::array<char, 9> text;
  std::snprintf(text.data(), text.size(), "%08x", v);
  return text.data();
}

std::string seal(std::string_view body) {
  return ",\n \"manifest_crc32c\": \"" + hex(crc32c(body.data(), body.size())) + "\"\n}\n";
}

// nlohmann takes any depth and keeps the last of duplicate keys: refuse both.
Json parse_strictly(std::string_view text, const std::string& place) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > max_depth) throw DataError(place, "nested too deep");
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw DataError(place, "the key '" + value.get<std::string>() + "' is there twice");
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    throw DataError(place, std::string("not the JSON that Trireme writes: ") + e.what());
  }
}

// Typed reading: every field must be there and have its type; numbers only as unsigned integers.
class Reader {
 public:
  Reader(const Json& json, const std::string& place) : json_(json), place_(place) {}

  const Json& at(const char* key) const {
    const auto it = json_.is_object() ? json_.find(key) : json_.end();
    if (!json_.is_object() || it == json_.end()) refuse(key, "is missing");
    return *it;
  }
  std::uint64_t integer(const char* key, std::uint64_t max) const { return integer(at(key), key, max); }
  std::uint64_t integer(const Json& v, const char* key, std::uint64_t max) const {
    if (!v.is_number_unsigned() || v.get<std::uint64_t>() > max) refuse(key, "is not a whole number in range");
    return v.get<std::uint64_t>();
  }
  std::string text(const char* key) const {
    if (!at(key).is_string()) refuse(key, "is not a text");
    return at(key).get<std::string>();
  }
  bool boolean(const char* key) const {
    if (!at(key).is_boolean()) refuse(key, "is not true or false");
    return at(key).get<bool>();
  }
  const Json& list(const char* key) const {
    if (!at(key).is_array()) refuse(key, "is not a list");
    return at(key);
  }
  std::uint32_t crc() const {
    const std::string t = text("crc32c");
    if (t.size() != 8 || t.find_first_not_of("0123456789abcdef") != t.npos) refuse("crc32c", "is not a checksum");
    return std::uint32_t(std::stoul(t, nullptr, 16));
  }
  [[noreturn]] void refuse(const char* key, const char* why) const {
    throw DataError(place_, std::string("'") + key + "' " + why);
  }

 private:
  const Json& json_;
  const std::string& place_;
};

Json json_of(const Manifest::Tensor& t) {
  Json j = {{"name", t.name}, {"dtype", std::string(name(t.dtype))},           {"shape", t.shape},
            {"rank", t.rank}, {"sharing", kinds[std::size_t(t.sharing.kind)]}, {"crc32c", hex(t.crc32c)}};
  if (t.is_text) j["text"] = true;
  if (t.sharing.kind == Sharing::rows) {
    j["first_row"] = t.sharing.first_row;
    j["total_rows"] = t.sharing.total_rows;
  }
  if (!t.sharing.holders.empty()) j["holders"] = t.sharing.holders;
  return j;
}

Json json_of(const Manifest::File& f) { return {{"name", f.name}, {"size", f.size}, {"crc32c", hex(f.crc32c)}}; }

Manifest::File file_of(const Json& json, const std::string& place) {
  const Reader r(json, place);
  return {r.text("name"), r.integer("size", std::uint64_t{1} << 50), r.crc()};
}

// Parts between slashes that HDF5 takes as they are.
bool is_usable(std::string_view name) {
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('/', begin), name.size());
    const auto part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != part.npos) return false;
    begin = end + 1;
  }
  return true;
}

std::uint64_t bytes_of(const Manifest::Tensor& t) {
  std::uint64_t bytes = size_of(t.dtype);
  for (const std::int64_t n : t.shape) bytes *= std::uint64_t(n);
  return bytes;
}

Manifest::Tensor tensor_of(const Json& json, const std::string& place) {
  constexpr std::uint64_t max = std::uint64_t{1} << 50;
  const Reader r(json, place);
  Manifest::Tensor t;
  t.name = r.text("name");
  if (!is_usable(t.name)) r.refuse("name", "is not one of an array");
  std::optional<DType> dtype;
  for (DType d : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::u8})
    if (r.text("dtype") == name(d)) dtype = d;
  if (!dtype) r.refuse("dtype", "is unknown");
  t.dtype = *dtype;
  // No product of dimensions may pass 2^50 bytes, zeros left out: later arithmetic cannot wrap.
  std::uint64_t bytes = size_of(t.dtype);
  for (const auto& d : r.list("shape")) {
    const auto n = r.integer(d, "shape", max);
    if (n > 1 && bytes > max / n) r.refuse("shape", "is too large");
    if (n > 1) bytes *= n;
    t.shape.push_back(std::int64_t(n));
  }
  if (t.shape.size() > 32) r.refuse("shape", "has too many dimensions");
  t.rank = int(r.integer("rank", std::numeric_limits<int>::max()));
  t.crc32c = r.crc();
  t.is_text = json.contains("text") && r.boolean("text");
  if (t.is_text && (t.dtype != DType::u8 || t.shape.size() != 1)) r.refuse("text", "is not a list of bytes");
  const std::string sharing = r.text("sharing");
  if (sharing == kinds[Sharing::per_rank]) t.sharing.kind = Sharing::per_rank;
  if (sharing == kinds[Sharing::rows]) {
    t.sharing = {Sharing::rows, std::int64_t(r.integer("first_row", max)), std::int64_t(r.integer("total_rows", max))};
    if (t.shape.empty() || t.sharing.first_row + t.shape[0] > t.sharing.total_rows)
      r.refuse("first_row", "and the shape do not fit the total rows");
    const auto row = bytes / std::max<std::uint64_t>(1, std::uint64_t(t.shape[0]));
    if (std::uint64_t(t.sharing.total_rows) > max / row) r.refuse("total_rows", "is too large");
  }
  if (sharing != kinds[std::size_t(t.sharing.kind)]) r.refuse("sharing", "is unknown");
  if (json.contains("holders")) {
    auto& holders = t.sharing.holders;
    for (const auto& h : r.list("holders")) {
      const int rank = int(r.integer(h, "holders", std::numeric_limits<int>::max()));
      if (!holders.empty() && rank <= holders.back()) r.refuse("holders", "are not in order");
      holders.push_back(rank);
    }
    if (t.sharing.kind == Sharing::replicated || holders.empty() || holders[0] != t.rank)
      r.refuse("holders", "do not begin with the rank whose file holds it");
  }
  return t;
}

}  // namespace

std::string rank_file(int rank) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "rank_%05d.h5", rank);
  return text.data();
}

std::string Manifest::print() const {
  // One tensor a line: a human can read and diff it.
  std::string s = "{\n \"format_version\": " + std::to_string(version) + ",\n \"step\": " + std::to_string(step) +
                  ",\n \"world_size\": " + std::to_string(world_size) + ",\n \"best\": " + (best ? "true" : "false") +
                  ",\n \"extra\": " + (extra.empty() ? "{}" : extra) + ",\n \"files\": [";
  const char* gap = "\n  ";
  for (const auto& f : files) s += std::exchange(gap, ",\n  ") + json_of(f).dump();
  s += "],\n \"tensors\": [";
  gap = "\n  ";
  for (const auto& t : tensors) s += std::exchange(gap, ",\n  ") + json_of(t).dump();
  s += "]";
  return s + seal(s);
}

Manifest Manifest::parse(std::string_view text, const std::string& place) {
  if (text.size() > max_text) throw DataError(place, "larger than 256 MiB");
  const auto end = text.rfind(",\n \"manifest_crc32c\"");
  if (end == text.npos || text.substr(end) != seal(text.substr(0, end)))
    throw DataError(place, "the checksum is wrong: the file is damaged", "use an older checkpoint");
  const Json json = parse_strictly(text, place);
  const Reader r(json, place);
  if (r.integer("format_version", std::numeric_limits<int>::max()) != version)
    throw DataError(place, "format version " + std::to_string(r.at("format_version").get<std::uint64_t>()) +
                               ", this program reads " + std::to_string(version));
  Manifest m;
  m.step = std::int64_t(r.integer("step", std::numeric_limits<std::int64_t>::max()));
  m.world_size = int(r.integer("world_size", 1 << 20));
  m.best = r.boolean("best");
  if (!r.at("extra").is_object()) r.refuse("extra", "is not an object");
  m.extra = r.at("extra").dump();
  for (const auto& f : r.list("files")) m.files.push_back(file_of(f, place));
  if (m.world_size < 1 || m.files.size() != std::size_t(m.world_size)) r.refuse("files", "are not one a rank");
  for (int i = 0; i < m.world_size; ++i)
    if (m.files[std::size_t(i)].name != rank_file(i)) r.refuse("files", "have other names than they should");
  std::set<std::pair<std::string, int>> seen;
  std::vector<std::uint64_t> room;  // in every file; what is read can then not be more than is there
  for (const auto& f : m.files) room.push_back(f.size);
  for (const auto& j : r.list("tensors")) {
    auto t = tensor_of(j, place);
    if (t.rank >= m.world_size || (!t.sharing.holders.empty() && t.sharing.holders.back() >= m.world_size))
      r.refuse("rank", "is not below the world size");
    if (!seen.emplace(t.name, t.rank).second) r.refuse("tensors", "has a name twice");
    auto& left = room[std::size_t(t.rank)];
    if (bytes_of(t) > left) r.refuse("tensors", "are larger than their file");
    left -= bytes_of(t);
    m.tensors.push_back(std::move(t));
  }
  return m;
}

std::string print_part(const Manifest::File& file, const std::vector<Manifest::Tensor>& tensors) {
  Json list = Json::array();
  for (const auto& t : tensors) list.push_back(json_of(t));
  return Json{{"file", json_of(file)}, {"tensors", list}}.dump();
}

void add_part(Manifest& to, std::string_view text) {
  const std::string place = "a rank's part of the manifest";
  const Json json = parse_strictly(text, place);
  const Reader r(json, place);
  to.files.push_back(file_of(r.at("file"), place));
  for (const auto& t : r.list("tensors")) to.tensors.push_back(tensor_of(t, place));
}

}  // namespace trireme

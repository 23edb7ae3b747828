#include "data/tables/npz.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/gzip.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trireme {
namespace {

constexpr std::int64_t most_bytes = std::int64_t{64} << 30;

struct Bytes {
  std::span<const std::uint8_t> all;
  const std::string& path;

  [[noreturn]] void refuse(const std::string& what) const { throw DataError(path, what, "make the .npz anew"); }
  template <class T>
  T at(std::uint64_t place) const {
    if (place > all.size() || sizeof(T) > all.size() - place) refuse("is cut short");
    T v;
    std::memcpy(&v, all.data() + place, sizeof v);
    return v;
  }
  std::span<const std::uint8_t> part(std::uint64_t place, std::uint64_t n) const {
    if (place > all.size() || n > all.size() - place) refuse("is cut short");
    return all.subspan(place, n);
  }
};

// APPNOTE 6.3: what the central directory says of a member.
struct Member {
  std::string name;
  std::uint16_t method = 0;
  std::uint32_t crc = 0;
  std::uint64_t packed = 0, size = 0, header = 0;
};

// Sizes that do not fit into 32 bits stand in extra field 1, in this order.
void widen(const Bytes& b, std::uint64_t extra, std::uint64_t length, Member& m) {
  for (std::uint64_t at = extra; at + 4 <= extra + length;) {
    const auto id = b.at<std::uint16_t>(at), n = b.at<std::uint16_t>(at + 2);
    std::uint64_t field = at + 4;
    if (id == 1)
      for (std::uint64_t* v : {&m.size, &m.packed, &m.header})
        if (*v == 0xffffffff && field + 8 <= at + 4 + n) *v = b.at<std::uint64_t>(field), field += 8;
    at += 4 + std::uint64_t(n);
  }
}

std::vector<Member> members_of(const Bytes& b) {
  if (b.all.size() < 22) b.refuse("is no .npz");
  std::uint64_t end = b.all.size() - 22;
  while (b.at<std::uint32_t>(end) != 0x06054b50) {
    if (end == 0 || b.all.size() - end > 66000) b.refuse("is no .npz");
    --end;
  }
  std::uint64_t count = b.at<std::uint16_t>(end + 10), at = b.at<std::uint32_t>(end + 16);
  if ((count == 0xffff || at == 0xffffffff) && end >= 20 && b.at<std::uint32_t>(end - 20) == 0x07064b50) {
    const auto wide = b.at<std::uint64_t>(end - 12);
    count = b.at<std::uint64_t>(wide + 32), at = b.at<std::uint64_t>(wide + 48);
  }
  std::vector<Member> all;
  for (std::uint64_t k = 0; k < count && k < 10000; ++k) {
    if (b.at<std::uint32_t>(at) != 0x02014b50) b.refuse("its directory is damaged");
    const auto name = b.at<std::uint16_t>(at + 28), extra = b.at<std::uint16_t>(at + 30),
               note = b.at<std::uint16_t>(at + 32);
    Member m;
    m.method = b.at<std::uint16_t>(at + 10), m.crc = b.at<std::uint32_t>(at + 16);
    m.packed = b.at<std::uint32_t>(at + 20), m.size = b.at<std::uint32_t>(at + 24),
    m.header = b.at<std::uint32_t>(at + 42);
    const auto text = b.part(at + 46, name);
    m.name.assign(text.begin(), text.end());
    widen(b, at + 46 + name, extra, m);
    all.push_back(std::move(m));
    at += 46u + name + extra + note;
  }
  return all;
}

// A deflated member is a gzip file without its frame, which brings the check of its CRC along.
std::string unpacked(const Bytes& b, const Member& m) {
  if (b.at<std::uint32_t>(m.header) != 0x04034b50) b.refuse("its member " + m.name + " is damaged");
  const std::uint64_t begin = m.header + 30 + b.at<std::uint16_t>(m.header + 26) + b.at<std::uint16_t>(m.header + 28);
  const auto data = b.part(begin, m.packed);
  if (m.size > std::uint64_t(most_bytes)) b.refuse("its member " + m.name + " is too large");
  if (m.method == 0) {
    if (const auto crc = zip_crc32(data); crc && *crc != m.crc) b.refuse("its member " + m.name + " is damaged");
    return {data.begin(), data.end()};
  }
  if (m.method != 8) b.refuse("its member " + m.name + " is packed in a way that NumPy does not use");
  std::vector<std::uint8_t> gzip{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255};
  gzip.insert(gzip.end(), data.begin(), data.end());
  for (const std::uint32_t word : {m.crc, std::uint32_t(m.size)})
    for (int k = 0; k < 4; ++k) gzip.push_back(std::uint8_t(word >> (8 * k)));
  return gunzip(gzip, b.path + ": " + m.name, most_bytes);
}

NpyArray array_of(const Bytes& b, const std::string& name, std::string text) {
  const auto bad = [&]() { b.refuse("its array " + name + " is none that can be read: i4, i8, f4 or f8 in C order"); };
  if (text.size() < 12 || text.compare(0, 6, "\x93NUMPY") != 0) bad();
  const auto byte = [&](std::size_t k) { return std::size_t(std::uint8_t(text[k])); };
  const bool first = text[6] == 1;
  const std::size_t begin = first ? 10 : 12;
  const std::size_t length = first ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (length > text.size() - begin) bad();
  const std::string head = text.substr(begin, length);
  NpyArray a;
  const auto type = head.find("'descr': '<"), shape = head.find("'shape': (");
  if (type == head.npos || type + 13 > head.size() || shape == head.npos ||
      head.find("'fortran_order': False") == head.npos)
    bad();
  a.kind = head[type + 11], a.bytes = head[type + 12] - '0';
  if ((a.kind != 'i' && a.kind != 'f') || (a.bytes != 4 && a.bytes != 8)) bad();
  std::uint64_t count = 1;
  for (std::size_t at = shape + 10; at < head.size() && head[at] != ')';) {
    if (std::uint8_t(head[at] - '0') > 9) {
      ++at;
      continue;
    }
    std::int64_t n = 0;
    while (at < head.size() && std::uint8_t(head[at] - '0') <= 9 && n < most_bytes) n = n * 10 + (head[at++] - '0');
    a.shape.push_back(n);
    if (n > 0 && count > std::uint64_t(most_bytes) / std::uint64_t(n)) bad();
    count *= std::uint64_t(n);
  }
  a.data = text.substr(begin + length);
  if (a.data.size() < count * std::uint64_t(a.bytes)) bad();
  return a;
}

const NpyArray& needed(const std::map<std::string, NpyArray>& all, const std::string& name,
                       std::vector<std::int64_t> shape, const std::string& path) {
  const auto found = all.find(name);
  if (found == all.end() || found->second.shape != shape)
    throw DataError(path, "has no array " + name + " of the shape that belongs to its X_cat",
                    "name kaggleAdDisplayChallenge_processed.npz of facebookresearch/dlrm");
  return found->second;
}

}  // namespace

double NpyArray::at(std::int64_t k) const {
  const char* p = data.data() + k * bytes;
  const auto as = [p]<class T>(T v) {
    std::memcpy(&v, p, sizeof v);
    return double(v);
  };
  if (kind == 'f') return bytes == 4 ? as(float{}) : as(double{});
  return bytes == 4 ? as(std::int32_t{}) : as(std::int64_t{});
}

std::map<std::string, NpyArray> read_npz(std::span<const std::uint8_t> file, const std::string& path) {
  const Bytes b{file, path};
  std::map<std::string, NpyArray> all;
  for (const auto& m : members_of(b)) {
    const std::string name = m.name.ends_with(".npy") ? m.name.substr(0, m.name.size() - 4) : m.name;
    all[name] = array_of(b, name, unpacked(b, m));
  }
  return all;
}

void seven_days(TableFileInfo& info) {
  const std::int64_t n = info.samples, last = n / 7 * 6 + std::min<std::int64_t>(n % 7, 6);
  const std::int64_t middle = last + (n - last + 1) / 2;
  info.train = {0, last}, info.test = {last, middle}, info.validation = {middle, n};
}

TableFileInfo prepare_criteo_npz(const std::string& from, const std::string& out, const std::string& source) {
  const auto all = read_npz(read_file(from, most_bytes), from);
  const auto found = all.find("X_cat");
  if (found == all.end() || found->second.shape.size() != 2 || found->second.shape[0] < 7 || found->second.shape[1] < 1)
    throw DataError(from, "has no X_cat", "name kaggleAdDisplayChallenge_processed.npz of facebookresearch/dlrm");
  const NpyArray& ids = found->second;
  const std::int64_t n = ids.shape[0], tables = ids.shape[1];
  const auto x = all.find("X_int");
  const std::int64_t wide = x != all.end() && x->second.shape.size() == 2 ? x->second.shape[1] : 0;
  const NpyArray &dense = needed(all, "X_int", {n, wide}, from), &labels = needed(all, "y", {n}, from);
  const NpyArray& counts = needed(all, "counts", {tables}, from);
  TableFileInfo info{"criteo", {}, {}, n, {}, {}, {}, {}, source};
  for (std::int64_t k = 0; k < wide; ++k) info.dense.push_back("I" + std::to_string(k + 1));
  for (std::int64_t t = 0; t < tables; ++t) {
    const double rows = counts.at(t);
    if (!(rows >= 0 && rows < 2147483648.0))
      throw DataError(from, "its counts give table " + std::to_string(t) + " no number of rows below 2^31",
                      "make the .npz anew");
    info.tables.push_back({"C" + std::to_string(t + 1), std::max<std::int64_t>(1, std::int64_t(rows))});
  }
  TableFileWriter writer(out, n, wide, tables, false);
  constexpr std::int64_t block = 65536;
  for (std::int64_t first = 0; first < n; first += block) {
    const std::int64_t m = std::min(block, n - first);
    std::vector<float> values;
    std::vector<std::int32_t> rows;
    std::vector<std::uint8_t> label;
    for (std::int64_t i = first; i < first + m; ++i) {
      for (std::int64_t k = 0; k < wide; ++k)
        values.push_back(float(std::log1p(std::max(0.0, dense.at(i * wide + k)))));
      for (std::int64_t t = 0; t < tables; ++t) {
        const double id = ids.at(i * tables + t);
        if (!(id >= 0 && id < double(info.tables[std::size_t(t)].rows)))
          throw DataError(from,
                          "sample " + std::to_string(i) + " has an id beyond counts in table " + std::to_string(t),
                          "make the .npz anew");
        rows.push_back(std::int32_t(id));
      }
      label.push_back(labels.at(i) > 0.5);
    }
    writer.add(m, values.data(), rows.data(), label.data());
  }
  seven_days(info);
  writer.finish(info);
  return info;
}

}  // namespace trireme

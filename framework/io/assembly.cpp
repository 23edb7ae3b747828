#include "framework/io/assembly.h"

#include "comm/error.h"

namespace trireme {

void Assembly::add(const Manifest::Tensor& t, const SharedBytes& data, const std::string& place) {
  auto& part = parts_[t.name];
  auto whole = t.shape;
  whole[0] = t.sharing.total_rows;
  if (!part.seen) part.entry = {t.dtype, whole, {Sharing::rows, 0, t.sharing.total_rows}, false, {}};
  part.seen = true;
  if (part.entry.dtype != t.dtype || part.entry.shape != whole)
    throw DataError(place + ": " + t.name, "the ranks' parts do not fit together");
  if (t.shape[0] == 0) return;
  // A part is copied, so that its file can go; the whole stays where it is.
  const bool all = t.shape == whole;
  if (!part.rows.emplace(t.sharing.first_row, Rows{t.shape[0], all ? data : SharedBytes(data.data(), data.size())}).second)
    throw DataError(place + ": " + t.name, "rows are missing or held twice");
}

void Assembly::finish(Snapshot& to, const std::string& place) {
  for (auto& [name, part] : parts_) {
    std::int64_t next = 0;
    std::size_t bytes = 0;
    for (const auto& [first, rows] : part.rows) bytes += rows.bytes.size();
    part.entry.bytes = part.rows.size() == 1 ? part.rows.begin()->second.bytes : SharedBytes(bytes);
    std::byte* at = part.entry.bytes.data();
    for (auto& [first, rows] : part.rows) {
      if (first != next) throw DataError(place + ": " + name, "rows are missing or held twice");
      next += rows.count;
      if (part.rows.size() > 1) std::memcpy(at, rows.bytes.data(), rows.bytes.size());
      at += rows.bytes.size();
      rows.bytes = {};
    }
    if (next != part.entry.sharing.total_rows) throw DataError(place + ": " + name, "rows are missing");
    to.entries[name] = std::move(part.entry);
  }
}

}  // namespace trireme

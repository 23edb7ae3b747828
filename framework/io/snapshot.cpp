#include "comm/error.h"
#include "framework/base/direct_archive.h"
#include "framework/io/checkpoint.h"

#include <array>
#include <cstring>
#include <set>

namespace trireme {
namespace {

constexpr std::array kinds = {"once for all ranks", "by rows", "for each rank"};

std::size_t bytes_of(DType dtype, std::span<const std::int64_t> shape) {
  std::size_t n = size_of(dtype);
  for (std::int64_t d : shape) n *= std::size_t(d);
  return n;
}

std::string text_of(DType dtype, std::span<const std::int64_t> shape) {
  std::string s(name(dtype));
  s += " [";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

class Saver final : public DirectArchive {
 public:
  Saver(Snapshot& to, int rank) : to_(to), rank_(rank) {}
  bool loading() const override { return false; }
  bool has(std::string_view) const override { return true; }

  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data,
             Sharing sharing) override {
    const std::size_t n = bytes_of(dtype, shape);
    array_through(name, dtype, shape, [&](void* own) { std::memcpy(own, data, n); }, std::move(sharing));
  }
  void array_through(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                     const std::function<void(void*)>& copy, Sharing sharing) override {
    if (sharing.kind == Sharing::rows &&
        (shape.empty() || sharing.first_row < 0 || sharing.first_row + shape[0] > sharing.total_rows))
      throw Error(ExitCode::bug, full(name), "its rows lie outside the whole array");
    keep(full(name), {dtype, {shape.begin(), shape.end()}, std::move(sharing), false, {}}, copy);
  }
  void text(std::string_view name, std::string& value, bool per_rank) override {
    const Sharing sharing = {per_rank ? Sharing::per_rank : Sharing::replicated};
    const auto copy = [&](void* own) { value.copy(static_cast<char*>(own), value.size()); };
    keep(full(name), {DType::u8, {std::int64_t(value.size())}, sharing, true, {}}, copy);
  }

 private:
  void keep(const std::string& name, Snapshot::Entry entry, const std::function<void(void*)>& copy) {
    if (!names_.insert(name).second) throw Error(ExitCode::bug, name, "saved twice under one name");
    const auto& holders = entry.sharing.holders;
    if (entry.sharing.kind == Sharing::replicated ? rank_ != 0 : !holders.empty() && holders[0] != rank_) return;
    entry.bytes = SharedBytes(bytes_of(entry.dtype, entry.shape));
    if (entry.bytes.size() > 0) copy(entry.bytes.data());
    to_.entries.emplace(name, std::move(entry));
  }

  Snapshot& to_;
  const int rank_;
  std::set<std::string> names_;
};

class Loader final : public DirectArchive {
 public:
  explicit Loader(const Snapshot& from) : from_(from) {}
  bool loading() const override { return true; }
  bool has(std::string_view name) const override { return from_.entries.contains(full(name)); }

  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data,
             Sharing sharing) override {
    const std::size_t n = bytes_of(dtype, shape);
    array_through(name, dtype, shape, [&](void* own) { std::memcpy(data, own, n); }, std::move(sharing));
  }
  void array_through(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                     const std::function<void(void*)>& copy, Sharing sharing) override {
    const auto& e = find(name, false);
    if (e.sharing.kind != sharing.kind)
      throw DataError(full(name), std::string("the checkpoint holds it ") + kinds[e.sharing.kind] + ", this run " +
                                      kinds[sharing.kind]);
    auto held = e.shape;
    std::size_t skip = 0;
    if (sharing.kind == Sharing::rows && e.sharing.kind == Sharing::rows && !shape.empty() && !held.empty()) {
      // The snapshot may hold more rows than this rank wants (it was written by another number of ranks).
      if (sharing.total_rows != e.sharing.total_rows)
        throw DataError(full(name), "the checkpoint has " + std::to_string(e.sharing.total_rows) +
                                        " rows in all, this run " + std::to_string(sharing.total_rows));
      const std::int64_t first = sharing.first_row - e.sharing.first_row;
      if (first < 0 || first + shape[0] > held[0])
        throw DataError(full(name), "the checkpoint does not hold rows " + std::to_string(sharing.first_row) + " to " +
                                        std::to_string(sharing.first_row + shape[0]));
      held[0] = 1;
      skip = std::size_t(first) * bytes_of(e.dtype, held);
      held[0] = shape[0];
    }
    if (sharing.kind != Sharing::rows && e.sharing.kind == Sharing::rows &&
        (held.empty() || held[0] != e.sharing.total_rows))
      throw DataError(full(name), "the checkpoint holds some rows of it, this run wants all");
    if (e.dtype != dtype || held != std::vector<std::int64_t>(shape.begin(), shape.end()))
      throw DataError(full(name), "the checkpoint holds " + text_of(e.dtype, e.shape) + ", this run wants " +
                                      text_of(dtype, shape));
    if (bytes_of(dtype, shape) > 0) copy(e.bytes.data() + skip);
  }
  void text(std::string_view name, std::string& value, bool) override {
    const auto& e = find(name, true);
    value.assign(reinterpret_cast<const char*>(e.bytes.data()), e.bytes.size());
  }

 private:
  const Snapshot::Entry& find(std::string_view name, bool text) const {
    const auto it = from_.entries.find(full(name));
    if (it == from_.entries.end() && from_.written_by > 0)
      throw DataError(full(name),
                      "not in the checkpoint as one that any number of ranks can load: it was written by " +
                          std::to_string(from_.written_by) + " ranks",
                      "resume on " + std::to_string(from_.written_by) + " ranks");
    if (it == from_.entries.end())
      throw DataError(full(name), "not in the checkpoint", "it was written by another recipe or version");
    if (it->second.is_text != text)
      throw DataError(full(name), text ? "an array in the checkpoint, a text here" : "a text in the checkpoint");
    return it->second;
  }

  const Snapshot& from_;
};

}  // namespace

Snapshot Snapshot::take(const std::function<void(Archive&)>& state, int rank) {
  Snapshot snapshot;
  Saver saver(snapshot, rank);
  state(saver);
  return snapshot;
}

void Snapshot::restore(const std::function<void(Archive&)>& state) const {
  Loader loader(*this);
  try {
    state(loader);
  } catch (const DataError& e) {
    if (place.empty()) throw;
    throw DataError(place, e.what());
  }
}

}  // namespace trireme

#include "data/hdf5.h"

#include "comm/error.h"
#include "data/hdf5_library.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

namespace trireme {
using namespace hdf5;
namespace {

constexpr const char* free_space = "free space there, or choose another place";
constexpr std::size_t chunk_bytes = 256 << 10;
constexpr std::size_t max_chunk_bytes = 16 << 20;  // HDF5 refuses 4 GiB; one checksum must not cover too much

// Memory and file selections for rows [first, first + count), then one transfer.
template <class Transfer>
herr_t transfer_rows(hid_t set, const std::vector<hsize_t>& dims, hsize_t first, hsize_t count,
                     const Transfer& transfer) {
  if (dims.empty()) return transfer(H5S_ALL, H5S_ALL);
  std::vector<hsize_t> start(dims.size(), 0), extent = dims;
  start[0] = first;
  extent[0] = count;
  Id file(H5Dget_space(set), H5Sclose);
  if (file < 0 || H5Sselect_hyperslab(file, H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr) < 0)
    return -1;
  Id memory(H5Screate_simple(int(extent.size()), extent.data(), nullptr), H5Sclose);
  return memory < 0 ? -1 : transfer(memory, file);
}

bool any_zero(const std::vector<hsize_t>& dims) { return std::find(dims.begin(), dims.end(), 0) != dims.end(); }

void check_rows(const std::string& where, const std::vector<hsize_t>& dims, std::int64_t first, std::int64_t count) {
  const auto rows = dims.empty() ? std::int64_t{1} : std::int64_t(dims[0]);
  if (first < 0 || count < 0 || first > rows || count > rows - first)
    throw DataError(where, "rows " + std::to_string(first) + " to " + std::to_string(first + count) +
                               " lie outside the array of " + std::to_string(rows));
}

void check_name(const std::string& path, const std::string& name) {
  std::size_t begin = 0;
  while (true) {
    const auto end = std::min(name.find('/', begin), name.size());
    const auto part = std::string_view(name).substr(begin, end - begin);
    if (part.empty() || part == "." || part.find('\0') != part.npos)
      throw DataError(place(path, name), "not a usable array name");
    if (end == name.size()) return;
    begin = end + 1;
  }
}

// Links and data sets may point into other files: that is not what was written and checksummed here.
bool is_hard_link(hid_t file, const std::string& name) {
  H5L_info_t info;
  return H5Lget_info(file, name.c_str(), &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
}

bool holds_its_data(hid_t set) {
  const Id list(H5Dget_create_plist(set), H5Pclose);
  return list >= 0 && H5Pget_layout(list) != H5D_VIRTUAL && H5Pget_external_count(list) == 0;
}

// By which a file in memory grows: HDF5 clears as much for every file.
constexpr std::size_t memory_step = 256 << 10;
constexpr hsize_t aligned = 64;  // where larger arrays of such a file begin

}  // namespace

Hdf5File Hdf5File::create(const std::string& path) {
  auto lock = lock_library();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create_list(), access_list());
  if (id < 0) fail(path, "", "cannot create");
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::open(const std::string& path) {
  auto lock = lock_library();
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access_list());
  if (id < 0) fail(path, "", "cannot open");
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::create_in_memory(const std::string& label) {
  auto lock = lock_library();
  Hdf5File file(label, -1);
  file.memory_ = std::make_shared<void*>(nullptr);
  Id access = access_list();
  H5FD_file_image_callbacks_t callbacks = keep_image_at_close(file.memory_.get());
  if (H5Pset_fapl_core(access, memory_step, false) < 0 || H5Pset_file_image_callbacks(access, &callbacks) < 0 ||
      H5Pset_alignment(access, 4096, aligned) < 0)
    fail(label, "", "cannot create in memory");
  file.id_ = H5Fcreate(unique_name().c_str(), H5F_ACC_TRUNC, create_list(), access);
  if (file.id_ < 0) fail(label, "", "cannot create in memory");
  return file;
}

Hdf5File Hdf5File::open_image(const std::string& label, std::span<const std::byte> image) {
  auto lock = lock_library();
  Id access = access_list();
  auto* bytes = const_cast<std::byte*>(image.data());
  H5FD_file_image_callbacks_t callbacks = image_as_it_is(bytes);
  if (image.empty()) throw DataError(label, "the file is empty");
  if (H5Pset_fapl_core(access, memory_step, false) < 0 || H5Pset_file_image_callbacks(access, &callbacks) < 0 ||
      H5Pset_file_image(access, bytes, image.size()) < 0)
    fail(label, "", "cannot hold in memory");
  const hid_t id = H5Fopen(unique_name().c_str(), H5F_ACC_RDONLY, access);
  if (id < 0) fail(label, "", "cannot open");
  Hdf5File file(label, id);
  file.image_ = image;
  return file;
}

Hdf5File::Hdf5File(Hdf5File&& o) noexcept
    : path_(std::move(o.path_)),
      id_(std::exchange(o.id_, -1)),
      memory_(std::move(o.memory_)),
      image_(o.image_),
      opened_(std::exchange(o.opened_, {})) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(id_, o.id_);
  std::swap(memory_, o.memory_);
  std::swap(image_, o.image_);
  std::swap(opened_, o.opened_);
  return *this;
}

Hdf5File::~Hdf5File() {
  close_handles();
  if (memory_) std::free(*memory_);
}

bool Hdf5File::close_handles() noexcept {
  if (id_ < 0) return true;
  auto lock = lock_library();
  bool good = true;
  for (auto& [name, set] : opened_) good = H5Dclose(set) >= 0 && good;
  opened_.clear();
  // Closing clears the error stack; flushing first keeps the reason of a failed write.
  const bool flushed = good && H5Fflush(id_, H5F_SCOPE_LOCAL) >= 0;
  if (!flushed) {
    hid_t kept = H5Eget_current_stack();
    H5Fclose(id_);
    if (kept >= 0) H5Eset_current_stack(kept);
  }
  good = flushed && H5Fclose(id_) >= 0;
  id_ = -1;
  return good;
}

void Hdf5File::close() {
  auto lock = lock_library();
  if (!close_handles()) fail(path_, "", "cannot finish writing", free_space);
}

std::span<const std::byte> Hdf5File::image() {
  close();
  if (!memory_ || !*memory_) throw DataError(path_, "not a file in memory");
  const auto* begin = static_cast<const std::byte*>(*memory_);
  std::uint64_t size;  // the buffer is longer; the superblock's end-of-file address (little endian) is at byte 28
  std::memcpy(&size, begin + 28, 8);
  return {begin, std::size_t(size)};
}

std::vector<std::string> Hdf5File::names() const {
  auto lock = lock_library();
  std::vector<std::string> names;
  const auto visit = [](hid_t group, const char* name, const H5L_info_t*, void* out) -> herr_t {
    Id object(H5Oopen(group, name, H5P_DEFAULT), H5Oclose);
    if (object < 0) return -1;
    if (H5Iget_type(object) == H5I_DATASET) static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  if (H5Lvisit(id_, H5_INDEX_NAME, H5_ITER_INC, visit, &names) < 0) fail(path_, "", "cannot list");
  std::sort(names.begin(), names.end());
  return names;
}

bool Hdf5File::has(const std::string& name) const {
  auto lock = lock_library();
  if (opened_.contains(name)) return true;
  for (auto end = name.find('/');; end = name.find('/', end + 1)) {
    const std::string part = name.substr(0, end);
    if (name.empty() || H5Lexists(id_, part.c_str(), H5P_DEFAULT) <= 0 || !is_hard_link(id_, part)) {
      H5Eclear2(H5E_DEFAULT);
      return false;
    }
    if (end == name.npos) break;
  }
  Id object(H5Oopen(id_, name.c_str(), H5P_DEFAULT), H5Oclose);
  return object >= 0 && H5Iget_type(object) == H5I_DATASET;
}

std::int64_t Hdf5File::opened(const std::string& name) const {
  if (id_ < 0) throw DataError(place(path_, name), "the file is closed");
  if (auto it = opened_.find(name); it != opened_.end()) return it->second;
  if (!has(name)) throw DataError(place(path_, name), "no such array in the file");
  const hid_t set = H5Dopen2(id_, name.c_str(), H5P_DEFAULT);
  if (set < 0) fail(path_, name, "cannot open");
  if (!holds_its_data(set)) {
    H5Dclose(set);
    throw DataError(place(path_, name), "its data lie in another file", "write it anew");
  }
  return opened_[name] = set;
}

Hdf5File::Array Hdf5File::array(const std::string& name) const {
  auto lock = lock_library();
  const hid_t set = opened(name);
  const auto dtype = dtype_of(set);
  if (!dtype) throw DataError(place(path_, name), "the array has a type that Trireme does not write");
  const auto dims = dims_of(set);
  return {*dtype, {dims.begin(), dims.end()}};
}

void Hdf5File::check_new(const std::string& name, std::span<const std::int64_t> shape) const {
  check_name(path_, name);
  if (id_ < 0) throw DataError(place(path_, name), "the file is closed");
  if (has(name)) throw DataError(place(path_, name), "the array is already there");
  for (std::int64_t n : shape)
    if (n < 0) throw DataError(place(path_, name), "a dimension is negative");
}

void Hdf5File::create_plain_array(const std::string& name, DType dtype, std::span<const std::int64_t> shape) {
  auto lock = lock_library();
  check_new(name, shape);
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  Id space(H5Screate_simple(int(dims.size()), dims.data(), nullptr), H5Sclose);
  Id list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  if (space < 0 || H5Pset_obj_track_times(list, false) < 0 || H5Pset_layout(list, H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY) < 0 || H5Pset_fill_time(list, H5D_FILL_TIME_NEVER) < 0 ||
      !create_groups(id_, name))
    fail(path_, name, "cannot create");
  Id set(H5Dcreate2(id_, name.c_str(), file_type(dtype), space, H5P_DEFAULT, list, H5P_DEFAULT), H5Dclose);
  if (set < 0 || !mark_dtype(set, dtype)) fail(path_, name, "cannot create");
  opened_[name] = set.release();
}

std::int64_t Hdf5File::offset(const std::string& name) const {
  auto lock = lock_library();
  const haddr_t at = H5Dget_offset(opened(name));
  H5Eclear2(H5E_DEFAULT);
  if (at == HADDR_UNDEF) throw DataError(place(path_, name), "the array is not in one piece", "write it anew");
  return std::int64_t(at);
}

const std::byte* Hdf5File::in_image(const std::string& name, std::size_t bytes) const {
  auto lock = lock_library();
  const haddr_t at = H5Dget_offset(opened(name));
  H5Eclear2(H5E_DEFAULT);
  if (at == HADDR_UNDEF || at > image_.size() || bytes > image_.size() - at) return nullptr;
  const std::byte* there = image_.data() + at;
  return reinterpret_cast<std::uintptr_t>(there) % 8 == 0 ? there : nullptr;
}

void Hdf5File::create_array(const std::string& name, DType dtype, std::span<const std::int64_t> shape,
                            std::int64_t chunk_rows) {
  auto lock = lock_library();
  check_new(name, shape);
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  Id space(dims.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(int(dims.size()), dims.data(), nullptr), H5Sclose);
  Id list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  herr_t status = H5Pset_obj_track_times(list, false);
  if (!dims.empty() && !any_zero(dims)) {
    auto chunk = dims;
    const auto bytes = [&] {
      return double(size_of(dtype)) * std::accumulate(chunk.begin(), chunk.end(), 1.0, std::multiplies<>());
    };
    chunk[0] = 1;
    const auto rows = chunk_rows > 0 ? double(chunk_rows) : std::max(1.0, double(chunk_bytes) / bytes());
    chunk[0] = hsize_t(std::min({rows, double(dims[0]), std::max(1.0, double(max_chunk_bytes) / bytes())}));
    while (bytes() > max_chunk_bytes) {
      auto& widest = *std::max_element(chunk.begin(), chunk.end());
      widest = (widest + 1) / 2;
    }
    if (status >= 0) status = H5Pset_chunk(list, int(chunk.size()), chunk.data());
    if (status >= 0) status = H5Pset_fletcher32(list);
  }
  if (space < 0 || status < 0 || !create_groups(id_, name)) fail(path_, name, "cannot create");
  Id set(H5Dcreate2(id_, name.c_str(), file_type(dtype), space, H5P_DEFAULT, list, H5P_DEFAULT), H5Dclose);
  if (set < 0) fail(path_, name, "cannot create");
  if (!mark_dtype(set, dtype)) fail(path_, name, "cannot create");
  opened_[name] = set.release();
}

void Hdf5File::write_rows(const std::string& name, std::int64_t first, std::int64_t count, const void* data) {
  auto lock = lock_library();
  const hid_t set = opened(name);
  const Array a = array(name);
  const auto dims = dims_of(set);
  check_rows(place(path_, name), dims, first, count);
  if (count == 0 || any_zero(dims)) return;
  const auto write = [&](hid_t memory, hid_t file) {
    return H5Dwrite(set, memory_type(a.dtype), memory, file, H5P_DEFAULT, data);
  };
  if (transfer_rows(set, dims, hsize_t(first), hsize_t(count), write) < 0)
    fail(path_, name, "cannot write", free_space);
}

void Hdf5File::read_rows(const std::string& name, std::int64_t first, std::int64_t count, void* out) const {
  auto lock = lock_library();
  const hid_t set = opened(name);
  const Array a = array(name);
  const auto dims = dims_of(set);
  check_rows(place(path_, name), dims, first, count);
  if (count == 0 || any_zero(dims)) return;
  const auto read = [&](hid_t memory, hid_t file) {
    return H5Dread(set, memory_type(a.dtype), memory, file, H5P_DEFAULT, out);
  };
  if (transfer_rows(set, dims, hsize_t(first), hsize_t(count), read) < 0) fail(path_, name, "cannot read");
}

void Hdf5File::read_rows(const std::string& name, std::span<const std::int64_t> rows, void* out) const {
  auto lock = lock_library();
  const hid_t set = opened(name);
  const Array a = array(name);
  const auto dims = dims_of(set);
  for (std::int64_t r : rows) check_rows(place(path_, name), dims, r, 1);
  if (any_zero(dims)) return;
  std::size_t row_bytes = size_of(a.dtype);
  for (std::size_t d = 1; d < dims.size(); ++d) row_bytes *= dims[d];
  auto* to = static_cast<std::byte*>(out);

  // In file order every chunk is read once, whatever order the caller wants; runs of neighbours go in one
  // call.
  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return rows[x] < rows[y]; });
  for (std::size_t i = 0; i < order.size();) {
    if (i > 0 && rows[order[i]] == rows[order[i - 1]]) {
      std::memcpy(to + order[i] * row_bytes, to + order[i - 1] * row_bytes, row_bytes);
      ++i;
      continue;
    }
    std::size_t n = 1;
    while (i + n < order.size() && order[i + n] == order[i] + n &&
           rows[order[i + n]] == rows[order[i]] + std::int64_t(n))
      ++n;
    const auto read = [&](hid_t memory, hid_t file) {
      return H5Dread(set, memory_type(a.dtype), memory, file, H5P_DEFAULT, to + order[i] * row_bytes);
    };
    if (transfer_rows(set, dims, hsize_t(rows[order[i]]), n, read) < 0) fail(path_, name, "cannot read");
    i += n;
  }
}

void Hdf5File::write_text(const std::string& name, const std::string& value) {
  auto lock = lock_library();
  const std::int64_t size = std::int64_t(value.size());
  create_array(name, DType::u8, {&size, 1}, size);
  write_rows(name, 0, size, value.data());
}

std::string Hdf5File::read_text(const std::string& name) const {
  auto lock = lock_library();
  const Array a = array(name);
  if (a.dtype != DType::u8 || a.shape.size() != 1) throw DataError(place(path_, name), "the array is not a text");
  std::string value(std::size_t(a.shape[0]), '\0');
  read_rows(name, 0, a.shape[0], value.data());
  return value;
}

}  // namespace trireme

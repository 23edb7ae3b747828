#include "data/hdf5.h"

#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <optional>
#include <utility>

#include <hdf5.h>
namespace trireme {
namespace {

constexpr std::size_t chunk_bytes = 256 << 10;
constexpr std::size_t max_chunk_bytes = 16 << 20;  // HDF5 refuses 4 GiB; one checksum must not cover too much
constexpr std::size_t cache_bytes = 4 << 20;       // a data set's chunk cache

// One lock for the process. It also silences the library's printing and, once, keeps it from flushing files
// at exit (a file whose close failed would be tried again there, over and over).
std::unique_lock<std::recursive_mutex> lock_library() {
  static auto* mutex = new std::recursive_mutex;  // outlives every static file
  std::unique_lock lock(*mutex);
  static const bool once = H5dont_atexit() >= 0 && H5open() >= 0;
  (void)once;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  return lock;
}

// The library's innermost message, or the system's reason where one is quoted in it.
std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* e, void* out) -> herr_t {
        auto& text = *static_cast<std::string*>(out);
        const std::string_view d = e->desc ? e->desc : "";
        constexpr std::string_view mark = "error message = '";
        if (auto at = d.find(mark); at != d.npos) {
          at += mark.size();
          text = d.substr(at, d.find('\'', at) - at);
          return 1;  // stop: nothing outside says it better
        }
        if (n == 0) text = d;
        return 0;
      },
      &text);
  H5Eclear2(H5E_DEFAULT);
  if (text.empty()) return "unknown HDF5 error";
  if (text == "unable to locate file signature" || text == "file signature not found")
    return "not an HDF5 file";
  return text;
}

std::string place(const std::string& path, const std::string& array) {
  return array.empty() ? path : path + ": " + array;
}

[[noreturn]] void fail(const std::string& path, const std::string& array, std::string_view doing) {
  throw DataError(place(path, array), std::string(doing) + ": " + reason());
}

class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  Id(Id&& o) noexcept : id_(o.release()), close_(o.close_) {}
  Id& operator=(Id&&) = delete;
  ~Id() {
    if (id_ < 0) return;
    // Closing clears the library's error stack, which may hold the reason that reason() has yet to read.
    const hid_t kept = H5Eget_num(H5E_DEFAULT) > 0 ? H5Eget_current_stack() : -1;
    close_(id_);
    if (kept >= 0) H5Eset_current_stack(kept);
  }
  operator hid_t() const { return id_; }
  hid_t release() { return std::exchange(id_, -1); }

 private:
  hid_t id_;
  Close close_;
};

hid_t file_type(DType t) {
  switch (t) {
    case DType::f64:
      return H5T_IEEE_F64LE;
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::f16:
    case DType::bf16:
      return H5T_STD_U16LE;  // bit patterns; the attribute `dtype` tells which
    case DType::i64:
      return H5T_STD_I64LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::u8:
      return H5T_STD_U8LE;
  }
  return -1;
}

hid_t memory_type(DType t) {
  switch (t) {
    case DType::f64:
      return H5T_NATIVE_DOUBLE;
    case DType::f32:
      return H5T_NATIVE_FLOAT;
    case DType::f16:
    case DType::bf16:
      return H5T_NATIVE_UINT16;
    case DType::i64:
      return H5T_NATIVE_INT64;
    case DType::i32:
      return H5T_NATIVE_INT32;
    case DType::u8:
      return H5T_NATIVE_UINT8;
  }
  return -1;
}

// A short fixed-length string attribute; empty when absent.
std::string attribute(hid_t object, const char* name) {
  if (H5Aexists(object, name) <= 0) return {};
  Id a(H5Aopen(object, name, H5P_DEFAULT), H5Aclose);
  if (a < 0) return {};
  Id type(H5Aget_type(a), H5Tclose);
  const std::size_t size = type < 0 ? 0 : H5Tget_size(type);
  if (size == 0 || size > 16 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) > 0) return {};
  std::array<char, 17> text{};
  if (H5Aread(a, type, text.data()) < 0) return {};
  return text.data();
}

bool set_attribute(hid_t object, const char* name, const std::string& value) {
  Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  if (type < 0 || H5Tset_size(type, value.size() + 1) < 0) return false;
  Id space(H5Screate(H5S_SCALAR), H5Sclose);
  Id a(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  return a >= 0 && H5Awrite(a, type, value.c_str()) >= 0;
}

std::optional<DType> dtype_of(hid_t set) {
  Id type(H5Dget_type(set), H5Tclose);
  if (type < 0) return {};
  for (DType t : {DType::f64, DType::f32, DType::i64, DType::i32, DType::u8})
    if (H5Tequal(type, file_type(t)) > 0) return t;
  if (H5Tequal(type, H5T_STD_U16LE) > 0) {
    const std::string which = attribute(set, "dtype");
    if (which == "f16") return DType::f16;
    if (which == "bf16") return DType::bf16;
  }
  return {};
}

std::vector<hsize_t> dims_of(hid_t set) {
  Id space(H5Dget_space(set), H5Sclose);
  const int rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> dims(std::max(rank, 0));
  if (rank > 0) H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return dims;
}

// Memory and file selections for rows [first, first + count), then one transfer.
template <class Transfer>
herr_t transfer_rows(hid_t set, const std::vector<hsize_t>& dims, hsize_t first, hsize_t count,
                     const Transfer& transfer) {
  if (dims.empty()) return transfer(H5S_ALL, H5S_ALL);
  std::vector<hsize_t> start(dims.size(), 0), extent = dims;
  start[0] = first;
  extent[0] = count;
  Id file(H5Dget_space(set), H5Sclose);
  if (file < 0 ||
      H5Sselect_hyperslab(file, H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr) < 0)
    return -1;
  Id memory(H5Screate_simple(int(extent.size()), extent.data(), nullptr), H5Sclose);
  return memory < 0 ? -1 : transfer(memory, file);
}

bool any_zero(const std::vector<hsize_t>& dims) {
  return std::find(dims.begin(), dims.end(), 0) != dims.end();
}

void check_rows(const std::string& where, const std::vector<hsize_t>& dims, std::int64_t first,
                std::int64_t count) {
  const auto rows = dims.empty() ? std::int64_t{1} : std::int64_t(dims[0]);
  if (first < 0 || count < 0 || first > rows || count > rows - first)
    throw DataError(where, "rows " + std::to_string(first) + " to " + std::to_string(first + count) +
                               " lie outside the array of " + std::to_string(rows));
}

// The 1.10 format checksums all its metadata; bytes do not depend on a newer library.
Id access_list() {
  Id list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_cache(list, 0, 1009, cache_bytes, 0.75);
  H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
  return list;
}

Id create_list() {
  Id list(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(list, false);
  return list;
}

// Groups on the way to `name`. H5Pset_create_intermediate_group would stamp them with the time.
bool create_groups(hid_t file, const std::string& name) {
  for (auto end = name.find('/'); end != name.npos; end = name.find('/', end + 1)) {
    const std::string group = name.substr(0, end);
    const htri_t there = H5Lexists(file, group.c_str(), H5P_DEFAULT);
    if (there > 0) continue;
    Id list(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
    if (there < 0 || list < 0 || H5Pset_obj_track_times(list, false) < 0) return false;
    Id made(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, list, H5P_DEFAULT), H5Gclose);
    if (made < 0) return false;
  }
  return true;
}

// The core driver would free its buffer at close; this keeps it in *udata. (H5Fget_file_image of HDF5 1.10
// gives a superblock with a wrong checksum, and costs a copy.)
H5FD_file_image_callbacks_t keep_image_at_close(void** kept) {
  H5FD_file_image_callbacks_t c = {};
  c.image_malloc = [](size_t n, H5FD_file_image_op_t, void*) { return std::malloc(n); };
  c.image_realloc = [](void* p, size_t n, H5FD_file_image_op_t, void*) { return std::realloc(p, n); };
  c.image_free = [](void* p, H5FD_file_image_op_t op, void* udata) -> herr_t {
    if (op == H5FD_FILE_IMAGE_OP_FILE_CLOSE)
      *static_cast<void**>(udata) = p;
    else
      std::free(p);
    return 0;
  };
  c.image_memcpy = [](void* to, const void* from, size_t n, H5FD_file_image_op_t, void*) {
    return std::memcpy(to, from, n);
  };
  c.udata_copy = [](void* udata) { return udata; };
  c.udata_free = [](void*) -> herr_t { return 0; };
  c.udata = kept;
  return c;
}

// Two open files in memory must not share a name.
std::string unique_name() {
  static std::int64_t n = 0;  // under the lock
  return "trireme-memory-" + std::to_string(n++);
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

}  // namespace

Hdf5File Hdf5File::create(const std::string& path) {
  auto lock = lock_library();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create_list(), access_list());
  if (id < 0) fail(path, "", "cannot create");
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::open(const std::string& path) {
  auto lock = lock_library();
  Id access = access_list();
#if H5_VERSION_GE(1, 10, 7)
  H5Pset_file_locking(access, false, true);  // readers need none, and network file systems often lack it
#endif
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (id < 0) fail(path, "", "cannot open");
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::create_in_memory(const std::string& label) {
  auto lock = lock_library();
  Hdf5File file(label, -1);
  file.memory_ = std::make_shared<void*>(nullptr);
  Id access = access_list();
  H5FD_file_image_callbacks_t callbacks = keep_image_at_close(file.memory_.get());
  if (H5Pset_fapl_core(access, 16 << 20, false) < 0 || H5Pset_file_image_callbacks(access, &callbacks) < 0)
    fail(label, "", "cannot create in memory");
  file.id_ = H5Fcreate(unique_name().c_str(), H5F_ACC_TRUNC, create_list(), access);
  if (file.id_ < 0) fail(label, "", "cannot create in memory");
  return file;
}

Hdf5File Hdf5File::open_image(const std::string& label, std::span<const std::byte> image) {
  auto lock = lock_library();
  Id access = access_list();
  H5Pset_fapl_core(access, 16 << 20, false);
  if (image.empty()) throw DataError(label, "the file is empty");
  if (H5Pset_file_image(access, const_cast<std::byte*>(image.data()), image.size()) < 0)
    fail(label, "", "cannot hold in memory");
  const hid_t id = H5Fopen(unique_name().c_str(), H5F_ACC_RDONLY, access);
  if (id < 0) fail(label, "", "cannot open");
  return Hdf5File(label, id);
}

Hdf5File::Hdf5File(Hdf5File&& o) noexcept
    : path_(std::move(o.path_)),
      id_(std::exchange(o.id_, -1)),
      memory_(std::move(o.memory_)),
      opened_(std::exchange(o.opened_, {})) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(id_, o.id_);
  std::swap(memory_, o.memory_);
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
  if (!close_handles()) fail(path_, "", "cannot finish writing");
}

std::vector<std::byte> Hdf5File::image() {
  close();
  if (!memory_ || !*memory_) throw DataError(path_, "not a file in memory");
  const auto* begin = static_cast<const std::byte*>(*memory_);
  std::uint64_t
      size;  // the buffer is longer; the superblock's end-of-file address (little endian) is at byte 28
  std::memcpy(&size, begin + 28, 8);
  return {begin, begin + size};
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
    if (name.empty() || H5Lexists(id_, name.substr(0, end).c_str(), H5P_DEFAULT) <= 0) {
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

void Hdf5File::create_array(const std::string& name, DType dtype, std::span<const std::int64_t> shape,
                            std::int64_t chunk_rows) {
  auto lock = lock_library();
  check_name(path_, name);
  if (id_ < 0) throw DataError(place(path_, name), "the file is closed");
  if (has(name)) throw DataError(place(path_, name), "the array is already there");
  for (std::int64_t n : shape)
    if (n < 0) throw DataError(place(path_, name), "a dimension is negative");
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  Id space(dims.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(int(dims.size()), dims.data(), nullptr),
           H5Sclose);
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
  if (dtype == DType::f16 || dtype == DType::bf16)
    if (!set_attribute(set, "dtype", dtype == DType::f16 ? "f16" : "bf16"))
      fail(path_, name, "cannot create");
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
  if (transfer_rows(set, dims, hsize_t(first), hsize_t(count), write) < 0) fail(path_, name, "cannot write");
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
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t x, std::size_t y) { return rows[x] < rows[y]; });
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
  if (a.dtype != DType::u8 || a.shape.size() != 1)
    throw DataError(place(path_, name), "the array is not a text");
  std::string value(std::size_t(a.shape[0]), '\0');
  read_rows(name, 0, a.shape[0], value.data());
  return value;
}

}  // namespace trireme

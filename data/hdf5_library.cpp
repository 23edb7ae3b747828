#include "data/hdf5_library.h"

#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <malloc.h>
#include <sys/mman.h>

// A file of ours is written under a name of its own and appears by rename, so nobody needs a lock; and many network
// file systems have none. Releases without this call heed a variable.
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 12, 0))
#define TRIREME_HDF5_LOCKING
#endif

namespace trireme::hdf5 {
namespace {

constexpr std::size_t cache_bytes = 4 << 20;  // a data set's chunk cache

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
  if (text == "unable to locate file signature" || text == "file signature not found") return "not an HDF5 file";
  return text;
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

// What of large memory has not been touched comes in huge pages, where the system has them. So much malloc has from the
// system in one piece, whole pages of it, and it must stay one piece to grow in place.
void* in_huge_pages(void* p, std::size_t n) {
  constexpr std::uintptr_t page = 4096, large = 64 << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(p) / page * page,
             end = (reinterpret_cast<std::uintptr_t>(p) + n + page - 1) / page * page;
  if (p && n >= large) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  return p;
}

}  // namespace

std::unique_lock<std::recursive_mutex> lock_library() {
  static auto* mutex = new std::recursive_mutex;  // outlives every static file
  std::unique_lock lock(*mutex);
#ifndef TRIREME_HDF5_LOCKING
  static const int no_locks = setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
  (void)no_locks;
#endif
  static const bool once = H5dont_atexit() >= 0 && H5open() >= 0;
  (void)once;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  return lock;
}

std::string place(const std::string& path, const std::string& array) {
  return array.empty() ? path : path + ": " + array;
}

void fail(const std::string& path, const std::string& array, std::string_view doing, std::string_view cure) {
  throw DataError(place(path, array), std::string(doing) + ": " + reason(), cure);
}

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

bool mark_dtype(hid_t set, DType t) {
  if (t != DType::f16 && t != DType::bf16) return true;
  return set_attribute(set, "dtype", t == DType::f16 ? "f16" : "bf16");
}

std::vector<hsize_t> dims_of(hid_t set) {
  Id space(H5Dget_space(set), H5Sclose);
  const int rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> dims(std::max(rank, 0));
  if (rank > 0) H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return dims;
}

// The 1.10 format checksums all its metadata; bytes do not depend on a newer library.
Id access_list() {
  Id list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_cache(list, 0, 1009, cache_bytes, 0.75);
  H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
#ifdef TRIREME_HDF5_LOCKING
  H5Pset_file_locking(list, false, true);
#endif
  return list;
}

Id create_list() {
  Id list(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(list, false);
  return list;
}

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

H5FD_file_image_callbacks_t keep_image_at_close(void** kept) {
  H5FD_file_image_callbacks_t c = {};
  c.image_malloc = [](size_t n, H5FD_file_image_op_t, void*) { return std::malloc(n); };
  // By a quarter at a time: HDF5 asks for, and clears, a small step each time.
  c.image_realloc = [](void* p, size_t n, H5FD_file_image_op_t, void*) {
    return p && n <= malloc_usable_size(p) ? p : in_huge_pages(std::realloc(p, n + n / 4), n + n / 4);
  };
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

H5FD_file_image_callbacks_t image_as_it_is(void* bytes) {
  H5FD_file_image_callbacks_t c = {};
  c.image_malloc = [](size_t, H5FD_file_image_op_t, void* udata) { return udata; };
  c.image_memcpy = [](void* to, const void*, size_t, H5FD_file_image_op_t, void*) { return to; };
  c.image_realloc = [](void*, size_t, H5FD_file_image_op_t, void*) -> void* { return nullptr; };
  c.image_free = [](void*, H5FD_file_image_op_t, void*) -> herr_t { return 0; };
  c.udata_copy = [](void* udata) { return udata; };
  c.udata_free = [](void*) -> herr_t { return 0; };
  c.udata = bytes;
  return c;
}

std::string unique_name() {
  static std::int64_t n = 0;  // under the lock
  return "trireme-memory-" + std::to_string(n++);
}

}  // namespace trireme::hdf5

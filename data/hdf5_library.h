// The HDF5 C library made safe to use: its lock, its errors, its handles, our types. For data/hdf5.cpp only.
#pragma once
#include "comm/buffer.h"

#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hdf5.h>

namespace trireme::hdf5 {

// One lock for the process. It also silences the library's printing and, once, keeps it from flushing files
// at exit (a file whose close failed would be tried again there, over and over).
std::unique_lock<std::recursive_mutex> lock_library();

std::string place(const std::string& path, const std::string& array);
// Throws DataError with the reason on the library's error stack, and empties it.
[[noreturn]] void fail(const std::string& path, const std::string& array, std::string_view doing,
                       std::string_view cure = {});

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

hid_t file_type(DType);
hid_t memory_type(DType);
// f16 and bf16 are bit patterns in u16; the attribute `dtype` tells which.
std::optional<DType> dtype_of(hid_t set);  // none for what we do not write
bool mark_dtype(hid_t set, DType);
std::vector<hsize_t> dims_of(hid_t set);

Id access_list();  // files are never locked
Id create_list();
// Groups on the way to `name`. H5Pset_create_intermediate_group would stamp them with the time.
bool create_groups(hid_t file, const std::string& name);
// The core driver would free its buffer at close; this keeps it in *udata. (H5Fget_file_image of HDF5 1.10
// gives a superblock with a wrong checksum, and costs a copy.)
H5FD_file_image_callbacks_t keep_image_at_close(void** kept);
// The core driver would copy an image twice; this lets it read the one at `bytes`.
H5FD_file_image_callbacks_t image_as_it_is(void* bytes);
// Two open files in memory must not share a name. Under the lock.
std::string unique_name();

}  // namespace trireme::hdf5

// HDF5 files that we wrote ourselves: named arrays, chunked with fletcher32, object times off. Never for
// untrusted input. The library is not thread safe: every call here takes one process-wide lock.
#pragma once
#include "comm/buffer.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trireme {

class Hdf5File {
 public:
  struct Array {
    DType dtype;
    std::vector<std::int64_t> shape;
  };

  static Hdf5File create(const std::string& path);  // truncates; throws DataError with the system's reason
  static Hdf5File open(const std::string& path);    // read only; missing, cut or foreign files throw DataError
  // The same in memory, for callers that do their own file I/O; `label` names the file in errors.
  static Hdf5File create_in_memory(const std::string& label);
  static Hdf5File open_image(const std::string& label, std::span<const std::byte> image);  // it must outlive the file
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();  // closes, dropping errors: call close() after writing

  std::vector<std::string> names() const;  // arrays and texts, sorted
  bool has(const std::string& name) const;
  Array array(const std::string& name) const;

  // Names may hold '/' (groups are made). chunk_rows: rows of dimension 0 in a chunk; 0 picks about 256 KiB.
  void create_array(const std::string& name, DType dtype, std::span<const std::int64_t> shape,
                    std::int64_t chunk_rows = 0);
  // To be mapped by its readers: in one piece, without a checksum, its space taken at once.
  void create_plain_array(const std::string& name, DType dtype, std::span<const std::int64_t> shape);
  // Where in the file such an array begins, its bytes little endian. DataError: it is not in one piece.
  std::int64_t offset(const std::string& name) const;
  // In an image: where the `bytes` of such an array are. Null: not in one piece, not all in the
  // image or at an odd address.
  const std::byte* in_image(const std::string& name, std::size_t bytes) const;
  void write_rows(const std::string& name, std::int64_t first, std::int64_t count, const void* data);
  // Rows of dimension 0 (a scalar array has one row), in file dtype. A bad checksum throws DataError naming
  // file and array.
  void read_rows(const std::string& name, std::int64_t first, std::int64_t count, void* out) const;
  void read_rows(const std::string& name, std::span<const std::int64_t> rows, void* out) const;

  void write_text(const std::string& name, const std::string& value);
  std::string read_text(const std::string& name) const;
  // Closes a file created in memory: what would be on disk, until this goes.
  std::span<const std::byte> image();
  void close();                    // throws what the last writes could not do

 private:
  Hdf5File(std::string path, std::int64_t id) : path_(std::move(path)), id_(id) {}
  std::int64_t opened(const std::string& name) const;
  void check_new(const std::string& name, std::span<const std::int64_t> shape) const;
  bool close_handles() noexcept;
  std::string path_;
  std::int64_t id_ = -1;
  std::shared_ptr<void*> memory_;  // of a file in memory: its bytes, once closed
  std::span<const std::byte> image_;
  // Data sets stay open: their chunk caches serve later reads.
  mutable std::map<std::string, std::int64_t> opened_;
};

}  // namespace trireme

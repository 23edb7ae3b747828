// A whole file as memory, to be read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace trireme {

// The file must not shrink while it is mapped.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // DataError
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::uint8_t> bytes() const { return {static_cast<const std::uint8_t*>(data_), bytes_}; }
  // Where `rows` rows of `row_bytes` each begin; null: they do not all lie in the file.
  const std::byte* rows(std::uint64_t offset, std::uint64_t rows, std::uint64_t row_bytes) const;

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace trireme

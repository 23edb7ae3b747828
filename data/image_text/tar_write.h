// Plain ustar files, as WebDataset shards are.
#pragma once
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace trireme {

// The file appears under its name at close(), by rename, or not at all. One thread.
class TarWriter {
 public:
  explicit TarWriter(const std::string& path);  // DataError: cannot be written; the folder must be there
  ~TarWriter();
  TarWriter(const TarWriter&) = delete;
  TarWriter& operator=(const TarWriter&) = delete;

  // A plain file. DataError: the disk is full, a name of more than 100 bytes.
  void add(std::string_view name, std::span<const std::uint8_t> bytes);
  void add(std::string_view name, std::string_view text) {
    add(name, std::span(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()));
  }
  void close();

 private:
  void write(const void* data, std::size_t bytes);
  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace trireme

#include "data/file.h"

#include "comm/error.h"

#include <filesystem>
#include <fstream>

namespace trireme {

std::vector<std::uint8_t> read_file(const std::string& path, std::int64_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw DataError(path, std::filesystem::exists(path, error) ? "not a plain file" : "no such file", "check the path");
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw DataError(path, "cannot be read: " + error.message(), "check its permissions");
  if (std::int64_t(size) > max_bytes)
    throw DataError(path,
                    "file of " + std::to_string(size) + " bytes is above the limit of " + std::to_string(max_bytes),
                    "make it smaller");
  std::vector<std::uint8_t> bytes(size);
  std::ifstream in(path, std::ios::binary);
  if (!in || !in.read(reinterpret_cast<char*>(bytes.data()), std::streamsize(size)))
    throw DataError(path, "cannot be read", "check its permissions");
  return bytes;
}

}  // namespace trireme

#include "data/file.h"

#include "comm/error.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include <fcntl.h>
#include <unistd.h>

namespace trireme {
namespace {

void sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  // Some network file systems flush files but know no flush of a folder: EINVAL.
  const bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP);
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!ok) throw DataError(path, std::string("cannot be flushed to disk: ") + std::strerror(error), "check the disk");
}

// Before anything is computed for it: why a file cannot be made, a stream does not say.
void make_file(const std::string& path, const std::string& folder) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0)
    throw DataError(folder, std::string("no file can be made there: ") + std::strerror(errno),
                    "make the folder writable, or choose another");
  ::close(fd);
}

}  // namespace

std::vector<std::uint8_t> read_file(const std::string& path, std::int64_t max_bytes) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) throw DataError(path, "no such file", "check the path");
  if (error) throw DataError(path, "cannot be read: " + error.message(), "check the path");
  if (status.type() != std::filesystem::file_type::regular) throw DataError(path, "not a plain file", "check the path");
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

std::string real_path(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path typed = fs::absolute(path, error);
  if (fs::is_directory(typed, error))
    if (const fs::path real = fs::canonical(typed, error); !error) return real.string();
  if (!typed.has_filename()) typed = typed.parent_path();
  const fs::path folder = fs::weakly_canonical(typed.parent_path(), error);
  return (error ? typed.lexically_normal() : folder / typed.filename()).string();
}

std::string data_cache(const std::string& name) {
  namespace fs = std::filesystem;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const fs::path base = cache && *cache ? fs::path(cache) : fs::path(home && *home ? home : ".") / ".cache";
  return (base / "trireme" / "data" / name).string();
}

void write_whole(const std::string& path, const std::function<void(const std::string& name)>& write) {
  namespace fs = std::filesystem;
  const fs::path target = fs::absolute(path);
  const std::string folder = target.parent_path().string();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder, "cannot create the folder: " + error.message(), "choose another --out");
  // Of its own also where several hosts write into one folder.
  const std::string temporary =
      target.string() + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(std::random_device()());
  try {
    make_file(temporary, folder);
    write(temporary);
    sync_path(temporary);
    fs::rename(temporary, target);
    sync_path(folder);
  } catch (const fs::filesystem_error& e) {
    fs::remove(temporary, error);
    throw DataError(path, std::string("cannot be put in place: ") + e.code().message(),
                    "check the folder's permissions");
  } catch (...) {
    fs::remove(temporary, error);
    throw;
  }
}

}  // namespace trireme

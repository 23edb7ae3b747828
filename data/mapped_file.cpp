#include "data/mapped_file.h"

#include "comm/error.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {

MappedFile::MappedFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat s {};
  void* p = MAP_FAILED;
  const bool known = fd >= 0 && fstat(fd, &s) == 0;
  if (known && s.st_size > 0) p = mmap(nullptr, std::size_t(s.st_size), PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (known && s.st_size == 0) throw DataError(path, "is empty", "write it again");
  if (p == MAP_FAILED)
    throw DataError(path, std::string("cannot be mapped: ") + std::strerror(error), "check its permissions");
  data_ = p, bytes_ = std::size_t(s.st_size);
}

MappedFile::~MappedFile() { munmap(data_, bytes_); }

const std::byte* MappedFile::rows(std::uint64_t offset, std::uint64_t rows, std::uint64_t row_bytes) const {
  if (offset > bytes_ || (row_bytes > 0 && rows > (bytes_ - offset) / row_bytes)) return nullptr;
  return static_cast<const std::byte*>(data_) + offset;
}

}  // namespace trireme

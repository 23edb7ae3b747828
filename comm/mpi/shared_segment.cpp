#include "comm/mpi/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace trireme {

SharedSegment SharedSegment::create(std::size_t bytes) {
  SharedSegment s;
  s.fd_ = memfd_create("trireme", MFD_CLOEXEC);
  if (s.fd_ >= 0 && ftruncate(s.fd_, static_cast<off_t>(bytes)) == 0) s.map(s.fd_, bytes);
  return s;
}

SharedSegment SharedSegment::open(const std::string& path, std::size_t bytes) {
  SharedSegment s;
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return s;
  // Process numbers mean something else in another container: never map a file that is too short.
  if (lseek(fd, 0, SEEK_END) == static_cast<off_t>(bytes)) s.map(fd, bytes);
  ::close(fd);
  return s;
}

void SharedSegment::map(int fd, std::size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return;
  base_ = static_cast<std::byte*>(p);
  bytes_ = bytes;
  if (bytes >= (4u << 20)) madvise(p, bytes, MADV_HUGEPAGE);  // only a wish
}

SharedSegment::~SharedSegment() {
  if (base_) munmap(base_, bytes_);
  close_path();
}

std::string SharedSegment::path() const {
  return fd_ < 0 ? std::string() : "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd_);
}

void SharedSegment::close_path() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

}  // namespace trireme

// Anonymous memory shared between processes of one node. It never has a name in a file system, so that
// nothing is left behind however a process ends.
#pragma once
#include <cstddef>
#include <string>
#include <utility>

namespace trireme {

class SharedSegment {
 public:
  SharedSegment() = default;
  // Zeroed. An empty segment (no exception) if the system has none to give.
  static SharedSegment create(std::size_t bytes);
  // Maps a segment that another process keeps open under `path()`; empty if this process cannot see it.
  static SharedSegment open(const std::string& path, std::size_t bytes);
  SharedSegment(SharedSegment&& other) noexcept { swap(other); }
  SharedSegment& operator=(SharedSegment&& other) noexcept {
    swap(other);
    return *this;
  }
  ~SharedSegment();

  explicit operator bool() const { return base_ != nullptr; }
  std::byte* base() const { return base_; }
  std::size_t bytes() const { return bytes_; }
  std::string path() const;  // valid on this node until close_path()
  void close_path();         // once all have opened it

 private:
  void map(int fd, std::size_t bytes);
  void swap(SharedSegment& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    std::swap(fd_, other.fd_);
  }
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  int fd_ = -1;
};

}  // namespace trireme

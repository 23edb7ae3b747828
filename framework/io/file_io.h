// The system calls under checkpoints and metrics, as an interface: tests fail the Nth call or drop what was
// not synced.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace trireme {

// Every call returns what the system call does, or -errno. Implementations are thread safe.
class FileIo {
 public:
  virtual ~FileIo() = default;
  virtual int open(const std::string& path, int flags, mode_t mode) = 0;
  virtual ssize_t read(int fd, void* to, std::size_t bytes) = 0;
  virtual ssize_t write(int fd, const void* from, std::size_t bytes) = 0;
  virtual int fsync(int fd) = 0;
  virtual int close(int fd) = 0;
  virtual int mkdir(const std::string& path) = 0;
  virtual int rename(const std::string& from, const std::string& to) = 0;
  virtual int unlink(const std::string& path) = 0;
  virtual int rmdir(const std::string& path) = 0;
  virtual int list(const std::string& folder, std::vector<std::string>& names) = 0;  // without . and ..
};

FileIo& system_io();

// These throw DataError with the path and the system's reason.
// Creates or truncates; the bytes are on disk when it returns (the folder's entry is not: sync_folder).
void write_durably(FileIo&, const std::string& path, std::span<const std::byte> bytes);
void write_durably(FileIo&, const std::string& path, std::string_view text);
std::vector<std::byte> read_whole(FileIo&, const std::string& path, std::size_t max_bytes);
void sync_folder(FileIo&, const std::string& path);
void make_folder(FileIo&, const std::string& path);  // and the missing ones above it; fine if it is there
void rename_path(FileIo&, const std::string& from, const std::string& to);
// Replaces a file whole or not at all, durably.
void replace_durably(FileIo&, const std::string& path, std::string_view text);
// A folder that holds only files; false if something could not be removed.
bool remove_folder(FileIo&, const std::string& path) noexcept;

// A log that grows at its end. What write() took is with the kernel: it survives the process, sync() the
// machine.
class AppendFile {
 public:
  explicit AppendFile(const std::string& path, int extra_flags = 0);
  AppendFile(AppendFile&& o) noexcept : path_(std::move(o.path_)), fd_(o.fd_) { o.fd_ = -1; }
  AppendFile& operator=(AppendFile&&) = delete;
  ~AppendFile();
  void write(std::string_view text);
  void sync();

 private:
  std::string path_;
  int fd_;
};

}  // namespace trireme

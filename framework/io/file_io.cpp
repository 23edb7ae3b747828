#include "framework/io/file_io.h"

#include "comm/error.h"
#include "framework/io/read_into.h"
#include "framework/io/shared_bytes.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <thread>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

template <class T>
T or_errno(T result) {
  return result < 0 ? T(-errno) : result;
}

class SystemIo final : public FileIo {
 public:
  int open(const std::string& path, int flags, mode_t mode) override {
    return or_errno(::open(path.c_str(), flags | O_CLOEXEC, mode));
  }
  ssize_t read(int fd, void* to, std::size_t n) override { return or_errno(::read(fd, to, n)); }
  ssize_t write(int fd, const void* from, std::size_t n) override { return or_errno(::write(fd, from, n)); }
  int fsync(int fd) override { return or_errno(::fsync(fd)); }
  int close(int fd) override { return or_errno(::close(fd)); }
  int mkdir(const std::string& path) override { return or_errno(::mkdir(path.c_str(), 0777)); }
  int rename(const std::string& from, const std::string& to) override {
    return or_errno(::rename(from.c_str(), to.c_str()));
  }
  int unlink(const std::string& path) override { return or_errno(::unlink(path.c_str())); }
  int rmdir(const std::string& path) override { return or_errno(::rmdir(path.c_str())); }
  int list(const std::string& folder, std::vector<std::string>& names) override {
    DIR* dir = ::opendir(folder.c_str());
    if (!dir) return -errno;
    names.clear();
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    const int error = errno;
    ::closedir(dir);
    return -error;
  }
};

[[noreturn]] void fail(const std::string& path, const char* doing, int error) {
  std::string cure;
  if (error == ENOSPC || error == EDQUOT) cure = "free some space and start the same command again";
  if (error == EROFS || error == EACCES) cure = "make the folder writable, or choose another with --out";
  if (error == ENOENT) cure = "check the path and its folder";
  if (error == EISDIR || error == EBUSY) cure = "give --out the name of a file in a folder";
  throw DataError(path, std::string("cannot ") + doing + ": " + std::generic_category().message(error), cure);
}

template <class F>
auto again_if_interrupted(F call) {
  auto result = call();
  while (result == -EINTR) result = call();
  return result;
}

// Closes on the way out of an error; the success path closes by hand and looks at the result.
struct Descriptor {
  FileIo& io;
  int fd;
  ~Descriptor() {
    if (fd >= 0) io.close(fd);
  }
  void close(const std::string& path) {
    const int status = io.close(std::exchange(fd, -1));
    // After EINTR the descriptor is gone on Linux; data was synced before. Anything else is a late write
    // error.
    if (status < 0 && status != -EINTR) fail(path, "close", -status);
  }
};

int open_file(FileIo& io, const std::string& path, int flags, const char* doing) {
  const int fd = again_if_interrupted([&] { return io.open(path, flags, 0666); });
  if (fd < 0) fail(path, doing, -fd);
  return fd;
}

void write_all(FileIo& io, int fd, const std::string& path, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t piece = std::min<std::size_t>(bytes.size(), 64 << 20);
    const ssize_t n = again_if_interrupted([&] { return io.write(fd, bytes.data(), piece); });
    if (n <= 0) fail(path, "write", n == 0 ? ENOSPC : int(-n));
    bytes = bytes.subspan(std::size_t(n));
  }
}

}  // namespace

FileIo& system_io() {
  static SystemIo io;
  return io;
}

void write_durably(FileIo& io, const std::string& path, std::span<const std::byte> bytes) {
  Descriptor file{io, open_file(io, path, O_WRONLY | O_CREAT | O_TRUNC, "create")};
  write_all(io, file.fd, path, bytes);
  const int status = again_if_interrupted([&] { return io.fsync(file.fd); });
  if (status < 0) fail(path, "sync", -status);
  file.close(path);
}

void write_durably(FileIo& io, const std::string& path, std::string_view text) {
  write_durably(io, path, std::as_bytes(std::span(text)));
}

void replace_durably(FileIo& io, const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp-" + std::to_string(getpid());
  try {
    write_durably(io, temporary, text);
    rename_path(io, temporary, path);
  } catch (...) {
    io.unlink(temporary);  // a full disk needs the room
    throw;
  }
  const auto slash = path.find_last_of('/');
  sync_folder(io, slash == path.npos ? "." : path.substr(0, slash + 1));
}

std::vector<std::byte> read_whole(FileIo& io, const std::string& path, std::size_t max_bytes) {
  Descriptor file{io, open_file(io, path, O_RDONLY, "open")};
  std::vector<std::byte> bytes;
  std::size_t have = 0;
  while (true) {
    if (have > max_bytes) throw DataError(path, "larger than the " + std::to_string(max_bytes) + " bytes expected");
    // One byte more than expected: the end of a file of the right size is seen without growing again.
    if (have == bytes.size()) bytes.resize(std::min(std::max<std::size_t>(2 * have, 1 << 16), max_bytes + 1));
    const ssize_t n = again_if_interrupted([&] { return io.read(file.fd, bytes.data() + have, bytes.size() - have); });
    if (n < 0) fail(path, "read", int(-n));
    if (n == 0) break;
    have += std::size_t(n);
  }
  bytes.resize(have);
  return bytes;
}

std::size_t read_into(FileIo& io, const std::string& path, std::span<std::byte> to,
                      const std::function<void(std::span<const std::byte>)>& seen) {
  constexpr std::size_t piece = 1 << 20, part = 64 << 20, window = 4 * part;
  Descriptor file{io, open_file(io, path, O_RDONLY, "open")};
  const auto read = [&](std::span<std::byte> into) {
    const ssize_t n = again_if_interrupted([&] { return io.read(file.fd, into.data(), into.size()); });
    if (n < 0) fail(path, "read", int(-n));
    return std::size_t(n);
  };
  std::size_t have = 0;
  for (std::size_t end = 0; end < to.size();) {
    const std::size_t begin = end;
    end = std::min(begin + window, to.size());
    std::vector<std::jthread> ahead;  // the system clears a thread's pages one by one: several clear faster
    try {
      for (std::size_t at = end, last = std::min(end + window, to.size()); at < last; at += part)
        ahead.emplace_back([=] { populate(to.data() + at, to.data() + std::min(at + part, last)); });
    } catch (const std::system_error&) {  // no thread is to be had: pages come when they are touched
    }
    while (have < end) {
      const std::size_t n = read(to.subspan(have, std::min(piece, end - have)));
      if (n == 0) return have;
      seen(to.subspan(have, n));
      have += n;
    }
  }
  std::byte more;
  if (read({&more, 1}) > 0)
    throw DataError(path, "larger than the " + std::to_string(to.size()) + " bytes expected");
  return have;
}

void sync_folder(FileIo& io, const std::string& path) {
  Descriptor folder{io, open_file(io, path, O_RDONLY | O_DIRECTORY, "open")};
  const int status = again_if_interrupted([&] { return io.fsync(folder.fd); });
  // Some network file systems cannot sync folders; they order renames by themselves.
  if (status < 0 && status != -EINVAL && status != -ENOTSUP) fail(path, "sync", -status);
  folder.close(path);
}

void make_folder(FileIo& io, const std::string& path) {
  int status = io.mkdir(path);
  if (status == -EEXIST) return;
  const auto slash = path.find_last_of('/');
  const std::string parent = slash == path.npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  if (status == -ENOENT && parent != path) {
    make_folder(io, parent);
    status = io.mkdir(path);
  }
  if (status < 0 && status != -EEXIST) fail(path, "make the folder", -status);
  sync_folder(io, parent);
}

void rename_path(FileIo& io, const std::string& from, const std::string& to) {
  const int status = io.rename(from, to);
  if (status < 0) fail(to, "rename to this", -status);
}

bool remove_folder(FileIo& io, const std::string& path) noexcept {
  try {
    std::vector<std::string> names;
    if (io.list(path, names) < 0) return false;
    for (const auto& name : names) io.unlink(path + "/" + name);
    return io.rmdir(path) >= 0;
  } catch (...) {  // out of memory: the next start removes it
    return false;
  }
}

AppendFile::AppendFile(const std::string& path, int extra_flags)
    : path_(path), fd_(open_file(system_io(), path, O_WRONLY | O_CREAT | O_APPEND | extra_flags, "open")) {}

AppendFile::~AppendFile() {
  if (fd_ >= 0) system_io().close(fd_);
}

void AppendFile::write(std::string_view text) { write_all(system_io(), fd_, path_, std::as_bytes(std::span(text))); }

void AppendFile::sync() {
  const int status = again_if_interrupted([&] { return system_io().fsync(fd_); });
  if (status < 0 && status != -EINVAL) fail(path_, "sync", -status);  // EINVAL: a pipe or a terminal
}

}  // namespace trireme

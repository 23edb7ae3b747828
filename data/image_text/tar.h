// Tar files read in place: ustar, pax and GNU long names. Nothing is unpacked, and no member's name is ever used as a
// path. Input may be hostile: a bad file throws DataError, and nothing is allocated beyond small limits.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace trireme {

// A plain file within the archive.
struct TarMember {
  std::string name;  // the archive's own bytes
  std::int64_t offset = 0, size = 0;
};

// Thread safe: reads are by position. (Mapped memory would kill the process where a file gets shorter.)
class TarFile {
 public:
  explicit TarFile(const std::string& path);  // DataError: no such file, not a plain file, cannot be read
  ~TarFile();
  TarFile(const TarFile&) = delete;
  TarFile& operator=(const TarFile&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t size() const { return size_; }                         // as it was when it was opened
  void read(std::int64_t offset, std::span<std::uint8_t> out) const;  // DataError where the file ends before

 private:
  std::string path_;
  int fd_ = -1;
  std::int64_t size_ = 0;
};

// Members in the archive's order. Folders, links and devices are passed over.
class TarWalk {
 public:
  explicit TarWalk(const TarFile& file) : file_(file) {}
  // None at the end: two zero blocks, one, or the end of the file behind a member. DataError for a file that is no tar
  // or is compressed, a header that is broken, a member that is cut short or sparse; then the walk is over.
  std::optional<TarMember> next();
  // Bytes of a member, at little cost where they lie behind the header that was read last. DataError above 1 MiB.
  std::string text(const TarMember& member);
  bool is_tar() const { return is_tar_; }  // a sound header was read

 private:
  const std::uint8_t* block(std::int64_t offset);
  std::int64_t after(std::int64_t offset, std::int64_t size, const char* what) const;
  [[noreturn]] void broken(std::int64_t offset, const std::string& what) const;

  const TarFile& file_;
  bool is_tar_ = false;
  std::int64_t at_ = 0;  // the next header; < 0: over
  std::vector<std::uint8_t> window_;
  std::int64_t window_at_ = 0;
};

}  // namespace trireme

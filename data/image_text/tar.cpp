#include "data/image_text/tar.h"

#include "comm/error.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

constexpr std::int64_t block_bytes = 512, window_bytes = 8192, max_text = 1 << 20;

// Fields of a header (POSIX 1003.1, ustar).
struct Header {
  const char* p;
  std::string_view field(std::size_t at, std::size_t length) const { return {p + at, strnlen(p + at, length)}; }
  char type() const { return p[156]; }
  bool posix() const { return std::memcmp(p + 257, "ustar\0", 6) == 0; }
  std::string name() const {
    const std::string name(field(0, 100)), prefix(posix() ? field(345, 155) : "");
    return prefix.empty() ? name : prefix + "/" + name;
  }

  // Octal digits, or GNU's base 256 for what they cannot say. < 0: no number.
  std::int64_t number(std::size_t at, std::size_t length) const {
    const auto* u = reinterpret_cast<const unsigned char*>(p + at);
    std::int64_t value = 0;
    if (u[0] & 0x80) {
      if (u[0] != 0x80) return -1;  // negative, or beyond 2^63
      for (std::size_t i = 1; i < length; ++i) {
        if (value >> 54) return -1;
        value = value << 8 | u[i];
      }
      return value;
    }
    std::size_t i = 0;
    while (i < length && p[at + i] == ' ') ++i;
    for (; i < length && p[at + i] >= '0' && p[at + i] <= '7'; ++i) value = value * 8 + (p[at + i] - '0');
    return i == length || p[at + i] == ' ' || p[at + i] == 0 ? value : -1;
  }

  // Old writers added signed bytes.
  bool checksum_holds() const {
    std::int64_t plain = 0, with_sign = 0;
    for (std::size_t i = 0; i < std::size_t(block_bytes); ++i) {
      const char c = i >= 148 && i < 156 ? ' ' : p[i];
      plain += static_cast<unsigned char>(c);
      with_sign += static_cast<signed char>(c);
    }
    const std::int64_t said = number(148, 8);
    return said == plain || said == with_sign;
  }
};

struct Extended {
  std::string name;        // empty: as the header says
  std::int64_t size = -1;  // < 0: as the header says
  bool sparse = false, sound = true;
};

// Records "LENGTH KEY=VALUE\n" of a pax header.
void read_pax(std::string_view text, Extended& next) {
  while (!text.empty() && text[0] != 0) {
    std::size_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    const auto head = std::size_t(end - text.data()) + 1;  // the digits and a space
    const auto equals = text.find('=', head);
    next.sound = error == std::errc() && length <= text.size() && length > head && *end == ' ' && equals < length - 1;
    if (!next.sound) return;
    const std::string_view key = text.substr(head, equals - head);
    const std::string_view value = text.substr(equals + 1, length - equals - 2);
    if (key == "path") next.name = value;
    if (key.starts_with("GNU.sparse.")) next.sparse = true;
    if (key == "size") {
      const auto [stop, wrong] = std::from_chars(value.data(), value.data() + value.size(), next.size);
      next.sound = wrong == std::errc() && stop == value.data() + value.size() && next.size >= 0;
      if (!next.sound) return;
    }
    text.remove_prefix(length);
  }
}

bool all_zero(const std::uint8_t* p) {
  return std::all_of(p, p + block_bytes, [](std::uint8_t b) { return b == 0; });
}

}  // namespace

TarFile::TarFile(const std::string& path) : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  struct stat s {};
  if (fd_ < 0 || fstat(fd_, &s) != 0) {
    const int error = errno;
    if (fd_ >= 0) ::close(fd_);
    if (error == ENOENT) throw DataError(path, "no such tar file", "check the path; a list of shards must be complete");
    throw DataError(path, std::string("cannot be read: ") + std::strerror(error),
                    error == EMFILE || error == ENFILE ? "raise `ulimit -n`" : "check its permissions");
  }
  size_ = s.st_size;
  if (S_ISREG(s.st_mode)) return;
  ::close(fd_);
  throw DataError(path, "not a plain file", "name a tar file, a list of them, or their folder");
}

TarFile::~TarFile() { ::close(fd_); }

void TarFile::read(std::int64_t offset, std::span<std::uint8_t> out) const {
  for (std::size_t done = 0; done < out.size();) {
    const ssize_t n = pread(fd_, out.data() + done, out.size() - done, off_t(offset + std::int64_t(done)));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw DataError(path_, std::string("cannot be read: ") + std::strerror(errno), "check the disk");
    if (n == 0) throw DataError(path_, "became shorter while it was in use", "put the whole file back");
    done += std::size_t(n);
  }
}

void TarWalk::broken(std::int64_t offset, const std::string& what) const {
  throw DataError(file_.path(), what + " at byte " + std::to_string(offset), "make or copy the tar again");
}

// The end of [offset, offset + size), filled up to whole blocks.
std::int64_t TarWalk::after(std::int64_t offset, std::int64_t size, const char* what) const {
  if (size < 0) broken(offset - block_bytes, std::string("tar header of ") + what + " says no size");
  if (size > file_.size() - offset) broken(offset, std::string("cut short: ") + what + " should begin and not end");
  return offset + (size + block_bytes - 1) / block_bytes * block_bytes;
}

// The 512 bytes at `offset`, valid until the next call.
const std::uint8_t* TarWalk::block(std::int64_t offset) {
  if (offset < window_at_ || offset + block_bytes > window_at_ + std::int64_t(window_.size())) {
    window_.resize(std::size_t(std::min(window_bytes, file_.size() - offset)));
    window_at_ = offset;
    file_.read(offset, window_);
  }
  return window_.data() + (offset - window_at_);
}

std::string TarWalk::text(const TarMember& m) {
  if (m.size > max_text)
    broken(m.offset, (m.name.empty() ? "header" : "`" + m.name + "`") + " of " + std::to_string(m.size) +
                         " bytes where a short text belongs");
  std::string out(std::size_t(m.size), '\0');
  if (m.offset >= window_at_ && m.offset + m.size <= window_at_ + std::int64_t(window_.size()))
    std::memcpy(out.data(), window_.data() + (m.offset - window_at_), out.size());
  else
    file_.read(m.offset, {reinterpret_cast<std::uint8_t*>(out.data()), out.size()});
  return out;
}

std::optional<TarMember> TarWalk::next() {
  Extended extended;
  while (at_ >= 0 && at_ < file_.size()) {
    const std::int64_t here = std::exchange(at_, -1);  // over, should anything throw
    if (file_.size() - here < block_bytes) broken(here, here == 0 ? "no tar: too short" : "cut short: a header");
    const Header h{reinterpret_cast<const char*>(block(here))};
    if (all_zero(reinterpret_cast<const std::uint8_t*>(h.p))) return {};
    if (!h.checksum_holds()) {
      if (here > 0) broken(here, "broken tar header");
      const bool gzip = std::memcmp(h.p, "\x1f\x8b", 2) == 0;
      throw DataError(
          file_.path(), gzip ? "is compressed, so its members cannot be read by position" : "is no tar file",
          gzip ? "unpack it with gunzip; JPEGs gain nothing by it" : "name tar files, or check the download");
    }
    is_tar_ = true;
    const char type = h.type();
    const std::int64_t data = here + block_bytes, own_size = h.number(124, 12);
    if (type == 'x' || type == 'g' || type == 'L' || type == 'K') {
      const std::int64_t end = after(data, own_size, "an extended header");
      const std::string more = text({"", data, own_size});
      if (type == 'x') read_pax(more, extended);
      if (!extended.sound) broken(here, "broken pax header");
      if (type == 'L') extended.name = more.substr(0, more.find('\0'));
      at_ = end;
      continue;
    }
    const std::string name = extended.name.empty() ? h.name() : extended.name;
    if (type == 'S' || extended.sparse) broken(here, "`" + name + "` is stored as a sparse file");
    const bool without_data = type >= '1' && type <= '6';
    const std::int64_t size = extended.size >= 0 ? extended.size : own_size;
    at_ = without_data ? data : after(data, size, ("`" + name + "`").c_str());
    if ((type == '0' || type == 0 || type == '7') && !name.ends_with('/')) return TarMember{name, data, size};
    extended = {};
  }
  return {};
}

}  // namespace trireme

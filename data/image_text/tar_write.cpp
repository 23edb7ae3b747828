#include "data/image_text/tar_write.h"

#include "comm/error.h"

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include <unistd.h>

namespace trireme {

TarWriter::TarWriter(const std::string& path)
    : path_(path),
      temporary_(path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(std::random_device()())) {
  file_ = std::fopen(temporary_.c_str(), "wb");
  if (!file_) throw DataError(path, std::string("cannot be written: ") + std::strerror(errno), "choose another --out");
}

TarWriter::~TarWriter() {
  if (!file_) return;
  std::fclose(file_);
  unlink(temporary_.c_str());
}

void TarWriter::write(const void* data, std::size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes)
    throw DataError(path_, std::string("cannot be written: ") + std::strerror(errno), "free space there");
}

void TarWriter::add(std::string_view name, std::span<const std::uint8_t> bytes) {
  if (name.empty() || name.size() > 100) throw DataError(path_, "a name of " + std::to_string(name.size()) + " bytes");
  char header[512] = {};
  name.copy(header, 100);
  const auto octal = [&](std::size_t at, int digits, std::uint64_t value) {
    for (int i = digits - 1; i >= 0; --i, value >>= 3) header[at + std::size_t(i)] = char('0' + (value & 7));
  };
  octal(100, 7, 0644), octal(108, 7, 0), octal(116, 7, 0);
  octal(124, 11, bytes.size());  // up to 8 GiB
  octal(136, 11, 0);             // no time: equal contents, equal files
  std::memset(header + 148, ' ', 8);
  header[156] = '0';
  std::memcpy(header + 257, "ustar\00000", 8);
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  octal(148, 6, sum);
  write(header, sizeof header);
  write(bytes.data(), bytes.size());
  static constexpr char zeros[512] = {};
  write(zeros, (512 - bytes.size() % 512) % 512);
}

void TarWriter::close() {
  static constexpr char zeros[1024] = {};
  write(zeros, sizeof zeros);
  const bool ok = std::fflush(file_) == 0;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (ok && closed && std::rename(temporary_.c_str(), path_.c_str()) == 0) return;
  const int error = errno;
  unlink(temporary_.c_str());
  throw DataError(path_, std::string("cannot be written: ") + std::strerror(error), "free space there");
}

}  // namespace trireme

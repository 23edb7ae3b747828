#include "data/gzip.h"

#include "comm/error.h"

#include <array>
#include <new>

#ifdef TRIREME_HAS_ZLIB
#include <zlib.h>
#endif

namespace trireme {

std::string gunzip([[maybe_unused]] std::span<const std::uint8_t> in, const std::string& path,
                   [[maybe_unused]] std::int64_t max_bytes) {
#ifdef TRIREME_HAS_ZLIB
  z_stream z{};
  if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  std::string out;
  std::array<char, 1 << 16> chunk;
  z.next_in = const_cast<Bytef*>(in.data());
  z.avail_in = uInt(in.size());
  int rc = Z_OK;
  while (rc == Z_OK && std::int64_t(out.size()) <= max_bytes) {
    z.next_out = reinterpret_cast<Bytef*>(chunk.data());
    z.avail_out = uInt(chunk.size());
    rc = inflate(&z, Z_NO_FLUSH);
    out.append(chunk.data(), chunk.size() - z.avail_out);
    if (rc == Z_BUF_ERROR || (rc == Z_OK && z.avail_in == 0 && z.avail_out != 0)) break;
    if (rc == Z_STREAM_END && z.avail_in > 0) rc = inflateReset(&z);  // files may be several, one behind the other
  }
  inflateEnd(&z);
  if (rc != Z_STREAM_END) throw DataError(path, "corrupt, truncated or oversized gzip file", "fetch the file again");
  return out;
#else
  throw DataError(path, "this build reads no gzip", "unpack it with gunzip, or install zlib1g-dev and build again");
#endif
}

std::optional<std::uint32_t> zip_crc32([[maybe_unused]] std::span<const std::uint8_t> bytes) {
#ifdef TRIREME_HAS_ZLIB
  return std::uint32_t(crc32_z(0, bytes.data(), bytes.size()));
#else
  return std::nullopt;
#endif
}

}  // namespace trireme

// Gzip files in memory.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace trireme {

// `in` unpacked; several files may stand one behind the other. DataError naming `path`: corrupt, cut short, beyond
// max_bytes, or a build without zlib.
std::string gunzip(std::span<const std::uint8_t> in, const std::string& path, std::int64_t max_bytes);

// The CRC-32 of gzip, zip and PNG files; nothing in a build without zlib.
std::optional<std::uint32_t> zip_crc32(std::span<const std::uint8_t> bytes);

}  // namespace trireme

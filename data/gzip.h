// Gzip files in memory.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace trireme {

// `in` unpacked; several files may stand one behind the other. DataError naming `path`: corrupt, cut short, beyond
// max_bytes, or a build without zlib.
std::string gunzip(std::span<const std::uint8_t> in, const std::string& path, std::int64_t max_bytes);

}  // namespace trireme

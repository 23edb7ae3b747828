// A large file read once, its checksum summed on the way (defined beside the other calls on FileIo).
#pragma once
#include "framework/io/file_io.h"

#include <functional>

namespace trireme {

// From the file's beginning into `to`; `seen` is told of each piece, in order, while a cache still has it. How many bytes
// there were; a file longer than `to` is refused. `to` need not be in memory yet: its pages are taken ahead of the reads.
std::size_t read_into(FileIo&, const std::string& path, std::span<std::byte> to,
                      const std::function<void(std::span<const std::byte>)>& seen);

}  // namespace trireme

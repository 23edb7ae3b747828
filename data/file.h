// Reading files that users bring, and writing whole ones.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trireme {

// Whole file; throws DataError when it is missing, not a plain file, or longer than max_bytes.
std::vector<std::uint8_t> read_file(const std::string& path, std::int64_t max_bytes);

// One spelling for one folder or file: absolute, dots and links resolved (of a file, those of its folder), no trailing
// slash.
std::string real_path(const std::string& path);

// ${XDG_CACHE_HOME:-~/.cache}/trireme/data/NAME
std::string data_cache(const std::string& name);

// What `write(name)` writes under a temporary name beside `path` appears there by rename, durably, or not at all. The
// folder is made. DataError with the cure.
void write_whole(const std::string& path, const std::function<void(const std::string& name)>& write);

}  // namespace trireme

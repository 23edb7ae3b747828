// The files below a folder of pictures.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace trireme {

// Everything below `root` that is no folder, each by its full path, in the order of paths (part by part); also links to
// nothing and links in a circle, which say so when they are opened. Never throws for what it meets: folders that cannot
// be read, and links to folders (which may lead out of the root, or round in a circle), go to `skipped`, one line each.
std::vector<std::string> files_below(const std::filesystem::path& root, std::vector<std::string>& skipped);

}  // namespace trireme

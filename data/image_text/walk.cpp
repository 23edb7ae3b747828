#include "data/image_text/walk.h"

#include <algorithm>

namespace trireme {
namespace {

namespace fs = std::filesystem;

void visit(const fs::path& folder, std::vector<std::string>& files, std::vector<std::string>& skipped) {
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    std::error_code unknown;  // then it is left to whoever opens it
    const bool link = entry->is_symlink(unknown);
    if (!entry->is_directory(unknown))
      files.push_back(entry->path().string());
    else if (link)
      skipped.push_back(entry->path().string() + ": a linked folder is not followed; copy it to this place");
    else
      visit(entry->path(), files, skipped);
  }
  if (error) skipped.push_back(folder.string() + ": cannot be read: " + error.message());
}

// As paths compare, part by part: '/' before every other character. (Paths themselves take five times the memory.)
bool before(const std::string& a, const std::string& b) {
  const auto key = [](unsigned char c) { return c == '/' ? 0 : int(c); };
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(),
                                      [&](unsigned char x, unsigned char y) { return key(x) < key(y); });
}

}  // namespace

std::vector<std::string> files_below(const fs::path& root, std::vector<std::string>& skipped) {
  std::vector<std::string> files;
  visit(root, files, skipped);
  std::sort(files.begin(), files.end(), before);
  return files;
}

}  // namespace trireme

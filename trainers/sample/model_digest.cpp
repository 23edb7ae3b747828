#include "trainers/sample/model_digest.h"

#include "comm/crc32c.h"
#include "data/mapped_file.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> files_of(const SampleConfig& c) {
  std::vector<fs::path> files;
  if (fs::is_directory(c.model)) {
    for (const auto& entry : fs::directory_iterator(c.model)) {
      const auto kind = entry.path().extension();
      if (entry.is_regular_file() && (kind == ".json" || (kind == ".safetensors" && c.weights != "random")))
        files.push_back(entry.path());
    }
  } else {
    files = {c.model, fs::path(c.model).parent_path() / "trireme.json"};
  }
  std::sort(files.begin(), files.end());
  if (!c.embeds.empty()) files.emplace_back(c.embeds);
  std::erase_if(files, [](const fs::path& p) { return !fs::is_regular_file(p); });
  return files;
}

}  // namespace

std::string model_digest(const SampleConfig& config) {
  std::uint32_t sum = 0;
  for (const auto& path : files_of(config)) {
    const std::string name = path.filename().string();
    const std::uint64_t bytes = fs::file_size(path);
    sum = crc32c(name.c_str(), name.size() + 1, sum);
    sum = crc32c(&bytes, sizeof bytes, sum);
    if (bytes) sum = crc32c(MappedFile(path.string()).rows(0, 1, bytes), bytes, sum);
  }
  char text[16];
  std::snprintf(text, sizeof text, "%08x", sum);
  return text;
}

}  // namespace trireme::sample

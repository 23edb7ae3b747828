// The index on disk: "TRIREMETAR1\n" and padding to 64 bytes with the counts; the rows; a JSON text with the rest; the
// hash of all before it.
#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/tar_index.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

struct Head {
  char magic[16] = "TRIREMETAR1\n";
  std::uint64_t rows = 0, text = 0;
  std::uint64_t unused[4] = {};
};
static_assert(sizeof(Head) == 64);

std::string hash_of(const void* data, std::size_t bytes) {
  ContentHash hash;
  hash.add(data, bytes);
  return hash.hex();
}

}  // namespace

TarIndex::~TarIndex() {
  if (mapped_) munmap(mapped_, mapped_bytes_);
}

// Mapped: the file is ours, only ever made whole by a rename, and never written again.
bool TarIndex::load(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  struct stat s {};
  void* p = MAP_FAILED;
  if (fstat(fd, &s) == 0 && s.st_size >= std::int64_t(sizeof(Head)))
    p = mmap(nullptr, std::size_t(s.st_size), PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  if (p == MAP_FAILED) return false;
  mapped_ = p, mapped_bytes_ = std::size_t(s.st_size);
  const auto* bytes = static_cast<const char*>(p);
  const auto refuse = [&] {
    munmap(mapped_, mapped_bytes_);
    mapped_ = nullptr;
    return false;
  };
  Head head, expected;
  std::memcpy(&head, bytes, sizeof head);
  if (std::memcmp(head.magic, expected.magic, sizeof head.magic) != 0 || head.rows >= TarRow::none ||
      head.text > mapped_bytes_)
    return refuse();
  const std::size_t text_at = sizeof head + head.rows * sizeof(TarRow), end = text_at + head.text;
  if (end + 32 != mapped_bytes_ || hash_of(bytes, end) != std::string(bytes + end, 32)) return refuse();
  const auto json = nlohmann::json::parse(bytes + text_at, bytes + end, nullptr, false);
  if (!json.is_object() || json["first"].size() != shards_.size()) return refuse();
  for (std::size_t i = 0; i < shards_.size(); ++i) shards_[i].first = json["first"][i];
  const std::vector<std::string> lines = json["broken"];
  const std::int64_t count = json["broken_count"];
  for (const auto& line : lines) broken_.add(line);
  if (count > std::int64_t(lines.size())) broken_.add("", count - std::int64_t(lines.size()));
  cut_ = json["cut"];
  identity_ = json["identity"];
  rows_ = {reinterpret_cast<const TarRow*>(bytes + sizeof head), head.rows};
  return true;
}

void TarIndex::save(const std::string& file) const {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(fs::path(file).parent_path(), error);
  nlohmann::json json{{"first", nlohmann::json::array()},
                      {"broken", broken_.first()},
                      {"broken_count", broken_.count()},
                      {"cut", cut_},
                      {"identity", identity_}};
  for (const auto& shard : shards_) json["first"].push_back(shard.first);
  const std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  Head head;
  head.rows = rows_.size(), head.text = text.size();
  std::string all(reinterpret_cast<const char*>(&head), sizeof head);
  all.append(reinterpret_cast<const char*>(rows_.data()), rows_.size_bytes());
  all += text;
  all += hash_of(all.data(), all.size());
  const std::string temporary =
      file + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(std::random_device()());
  std::ofstream out(temporary, std::ios::binary);
  out.write(all.data(), std::streamsize(all.size()));
  out.close();
  if (out) fs::rename(temporary, file, error);
  if (!out || error) fs::remove(temporary, error);  // then the index stays in memory
}

}  // namespace trireme

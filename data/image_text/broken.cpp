#include "data/image_text/broken.h"

#include <algorithm>
#include <utility>

namespace trireme {

void BrokenPictures::add(std::int64_t id, const BrokenPicture& why) {
  const std::lock_guard lock(mutex_);
  if (!all_.emplace(id, why.what()).second) return;
  fresh_.emplace(id, why.what());
  const double allowed = most_share_ * double(data_.size());
  if (double(all_.size()) <= allowed) return;
  if (allowed < 1) throw why;
  throw DataError(data_.path(),
                  "more than " + std::to_string(std::int64_t(allowed)) + " of " + std::to_string(data_.size()) +
                      " pictures are broken (data.broken_share), such as: " + why.what(),
                  "or raise data.broken_share");
}

std::int64_t BrokenPictures::next(std::int64_t id) {
  const std::lock_guard lock(mutex_);
  if (split_.empty()) split_ = data_.train_ids();
  if (split_.empty()) return id;
  const auto after = std::upper_bound(split_.begin(), split_.end(), id);
  return after == split_.end() ? split_.front() : *after;
}

std::vector<std::string> BrokenPictures::take() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  for (const auto& [id, why] : std::exchange(fresh_, {}))
    lines.push_back("a broken picture, whose place the next one takes: " + why);
  return lines;
}

}  // namespace trireme

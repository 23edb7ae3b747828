#include "data/image_text/broken.h"

#include "data/image_text/broken_samples.h"

#include <algorithm>
#include <utility>

namespace trireme {

const std::vector<std::int64_t>& BrokenPictures::split() {
  if (split_.empty()) {
    split_ = data_.train_ids();
    split_.erase(std::unique(split_.begin(), split_.end()), split_.end());  // weights repeat ids
  }
  return split_;
}

void BrokenPictures::add(std::int64_t id, const BrokenPicture& why) {
  const std::lock_guard lock(mutex_);
  if (!all_.emplace(id, why.what()).second) return;
  fresh_.emplace(id, why.what());
  const bool training = std::binary_search(split().begin(), split().end(), id);
  const std::int64_t broken = training ? ++broken_training_ : std::ssize(all_) - broken_training_;
  const std::int64_t of = training ? std::ssize(split()) : data_.size() - std::ssize(split());
  if (!BrokenSamples::too_many(broken, most_share_, of)) return;
  if (most_share_ <= 0) throw why;
  const auto allowed = std::max<std::int64_t>(of > 1, std::int64_t(most_share_ * double(of)));
  throw DataError(data_.path(),
                  "more than " + std::to_string(allowed) + " of " + std::to_string(of) +
                      (training ? " training" : " evaluation") +
                      " pictures are broken (data.broken_share), such as: " + why.what(),
                  "or raise data.broken_share");
}

std::int64_t BrokenPictures::next(std::int64_t id) {
  const std::lock_guard lock(mutex_);
  if (broken_training_ == std::ssize(split()))  // or the search would go round for ever
    throw DataError(data_.path(),
                    "every training picture is broken (" + std::to_string(split().size()) +
                        "), such as: " + (all_.empty() ? "there is none" : all_.begin()->second),
                    "mend the data");
  const auto after = std::upper_bound(split().begin(), split().end(), id);
  return after == split().end() ? split().front() : *after;
}

std::vector<std::string> BrokenPictures::take() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  for (const auto& [id, why] : std::exchange(fresh_, {}))
    lines.push_back("a broken picture, whose place the next one takes: " + why);
  return lines;
}

}  // namespace trireme

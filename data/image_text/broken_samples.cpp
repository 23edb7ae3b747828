#include "data/image_text/broken_samples.h"

#include "comm/error.h"

namespace trireme {

void BrokenSamples::add(const std::string& line, std::int64_t count) {
  std::lock_guard lock(mutex_);
  count_ += count;
  if (first_.size() < named) first_.push_back(line);
}

std::int64_t BrokenSamples::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

std::vector<std::string> BrokenSamples::first() const {
  std::lock_guard lock(mutex_);
  return first_;
}

std::string BrokenSamples::summary(std::int64_t samples) const {
  std::lock_guard lock(mutex_);
  if (count_ == 0) return {};
  std::string line =
      std::to_string(count_) + " of " + std::to_string(samples) +
      (count_ == 1 ? " samples is broken and left out: " : " samples are broken and left out; the first: ");
  for (const auto& one : first_) line += (&one == first_.data() ? "" : " | ") + one;
  return line;
}

bool BrokenSamples::too_many(std::int64_t broken, double share, std::int64_t samples) {
  if (broken == 0 || (broken == 1 && share > 0 && samples > 1)) return false;
  return double(broken) > share * double(samples);
}

void BrokenSamples::check(double share, std::int64_t samples, const std::string& where) const {
  if (!too_many(count(), share, samples)) return;
  throw DataError(where, summary(samples), "mend the data, or raise data.broken_share");
}

}  // namespace trireme

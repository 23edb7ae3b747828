// Samples that cannot be used: counted, the first ten named, and fatal above a share.
#pragma once
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace trireme {

// Thread safe.
class BrokenSamples {
 public:
  static constexpr std::size_t named = 10;

  void add(const std::string& line, std::int64_t count = 1);  // "shard.tar: `000017` has no caption"
  std::int64_t count() const;
  std::vector<std::string> first() const;  // at most `named` lines
  // More than `share` of `samples`. (One alone never is too many unless share is 0, or it is all there is.)
  static bool too_many(std::int64_t broken, double share, std::int64_t samples);
  // DataError once too many are broken.
  void check(double share, std::int64_t samples, const std::string& where) const;
  // "3 of 1000 samples are broken and left out; the first: ..."; empty: none.
  std::string summary(std::int64_t samples) const;

 private:
  mutable std::mutex mutex_;
  std::int64_t count_ = 0;
  std::vector<std::string> first_;
};

}  // namespace trireme

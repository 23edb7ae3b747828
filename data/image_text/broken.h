// Pictures that turn out to be broken while training reads them: counted and named, and fatal above a share.
#pragma once
#include "data/image_text/pairs.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace trireme {

// Thread safe.
class BrokenPictures {
 public:
  BrokenPictures(const Pairs& data, double most_share) : data_(data), most_share_(most_share) {}

  // The first time counts. DataError: more than that share of the training pictures are broken, or of the others (one
  // alone never is too many unless the share is 0).
  void add(std::int64_t id, const BrokenPicture& why);
  // Who takes its place: the next one of the training split, round its end. DataError: every one of them is broken.
  std::int64_t next(std::int64_t id);
  // A line for each one added since the last call, in the order of ids.
  std::vector<std::string> take();

 private:
  const std::vector<std::int64_t>& split();  // of training; under the lock

  const Pairs& data_;
  const double most_share_;
  std::mutex mutex_;
  std::vector<std::int64_t> split_;
  std::int64_t broken_training_ = 0;
  std::map<std::int64_t, std::string> all_, fresh_;
};

}  // namespace trireme

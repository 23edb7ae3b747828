#include "data/image_text/split.h"

#include <algorithm>
#include <unordered_map>

namespace trireme {

std::vector<std::int64_t> keep_per_caption(std::vector<std::int64_t> ids, const Pairs& pairs, std::int64_t most) {
  if (most <= 0) return ids;
  std::unordered_map<std::int64_t, std::vector<std::int64_t>> by_caption;
  for (const auto id : ids) by_caption[pairs.caption_id(id)].push_back(id);
  ids.clear();
  for (const auto& [caption, rows] : by_caption) {
    const auto count = std::int64_t(rows.size()), keep = std::min(count, most);
    for (std::int64_t k = 0; k < keep; ++k) ids.push_back(rows[std::size_t(k * count / keep)]);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

double held_out_share(double share, std::int64_t captions) {
  return captions > 0 ? std::min(share, 5000.0 / double(captions)) : share;
}

}  // namespace trireme

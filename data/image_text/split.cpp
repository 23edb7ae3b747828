#include "data/image_text/split.h"

#include "data/image_text/caption_text.h"

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

std::vector<std::int64_t> keep_part(std::vector<std::int64_t> ids, const Pairs& pairs, const Part& part) {
  if (part.empty()) return ids;
  std::erase_if(ids, [&](std::int64_t id) {
    const auto draw = caption_draw("part of " + pairs.caption(id));
    return draw < held_out_draw(part[0]) || draw >= held_out_draw(part[1]);
  });
  return ids;
}

bool is_part(const Part& part) {
  return part.empty() || (part.size() == 2 && 0 <= part[0] && part[0] < part[1] && part[1] <= 1);
}

bool apart(const Part& a, const Part& b) { return !a.empty() && !b.empty() && (a[1] <= b[0] || b[1] <= a[0]); }

double held_out_share(double share, std::int64_t captions) {
  return captions > 0 ? std::min(share, 5000.0 / double(captions)) : share;
}

}  // namespace trireme

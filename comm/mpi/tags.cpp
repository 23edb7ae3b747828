#include "comm/mpi/tags.h"

#include <bit>

namespace trireme {

Tags::Block Tags::claim_locked(int leader, std::int64_t first, int width) {
  Block block{leader, first};
  for (int i = 0; i < width && tag(leader, first + i) <= highest_; ++i)
    if (claimed_.insert(tag(leader, first + i)).second) block.claimed |= std::uint64_t{1} << i;
  return block;
}

Tags::Block Tags::claim(int leader, std::int64_t first, int width) {
  const std::lock_guard lock(mutex_);
  return claim_locked(leader, first, width);
}

Tags::Block Tags::claim_free(int leader, std::int64_t first, int width) {
  const std::lock_guard lock(mutex_);
  while (claimed_.contains(tag(leader, first))) ++first;
  return tag(leader, first) <= highest_ ? claim_locked(leader, first, width) : Block{leader};
}

int Tags::keep(const Block& mine, std::uint64_t claimed_by_all) {
  const int lowest = claimed_by_all == 0 ? -1 : std::countr_zero(claimed_by_all);
  const std::lock_guard lock(mutex_);
  for (int i = 0; i < most_width; ++i)
    if (i != lowest && (mine.claimed >> i & 1)) claimed_.erase(tag(mine.leader, mine.first + i));
  return lowest < 0 ? -1 : static_cast<int>(tag(mine.leader, mine.first + lowest));
}

void Tags::give_back(int tag) {
  const std::lock_guard lock(mutex_);
  claimed_.erase(tag);
}

}  // namespace trireme
